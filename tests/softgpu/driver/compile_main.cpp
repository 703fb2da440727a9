// A tool: compiles one .cu file into an object of a sanitizer program.
//   compile_kernel SOURCE SHIM HEADERS OUTPUT FLAG...
#include "compile.h"
#include <cstdio>

int main(int count, char** words) {
    if (count < 5) return 2;
    softgpu::Compilation c{words[1], words[2], words[3], words[4], {words + 5, words + count}, {}, true};
    c.flags.push_back("-c");
    std::string log;
    bool good = softgpu::compile(c, log);
    fputs(log.c_str(), stderr);
    return good ? 0 : 1;
}
