// Compilation of a .cu file by g++ and the shim; used by libnvrtc.so and by the tool that builds sanitizer programs.
#pragma once
#include <string>
#include <vector>

namespace softgpu {
struct Compilation {
    std::string source;   // the .cu file; what it includes by name is looked for in `shim`, then in `headers`
    std::string shim, headers, output;
    std::vector<std::string> flags, libraries;
    bool program;         // an object of a program that collects kernels, instead of a library that exports them
};
// True when it succeeded; `log` gets the compiler's messages.
bool compile(const Compilation& c, std::string& log);

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& text);
}  // namespace softgpu
