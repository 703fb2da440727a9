// libnvrtc.so: "compiles" CUDA C++ with g++ and the shim into a library, cached by the hash of everything that matters.
//
// The source is preprocessed first; there, `extern "C" __global__` functions are found by the attributes that the shim's
// keywords became, macros expanded. For each, a trailer is appended that describes its arguments by templates.
// SOFTGPU_CACHE names the cache folder (default: `kernels` beside this library), SOFTGPU_CXX the compiler.
#include "device.h"
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;
using namespace softgpu;

enum { NVRTC_SUCCESS = 0, NVRTC_ERROR_PROGRAM_CREATION_FAILURE = 2, NVRTC_ERROR_INVALID_INPUT = 3, NVRTC_ERROR_COMPILATION = 6 };

struct Program {
    std::string source, name, log, image;
    std::vector<std::pair<std::string, std::string>> headers;  // include name, text
};

static std::string read_file(const std::string& path) {
    std::string text;
    if (FILE* file = fopen(path.c_str(), "rb")) {
        char part[65536];
        for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
        fclose(file);
    }
    return text;
}
static void write_file(const std::string& path, const std::string& text) {
    FILE* file = fopen(path.c_str(), "wb");
    if (!file || fwrite(text.data(), 1, text.size(), file) != text.size() || fclose(file)) fatal("cannot write " + path);
}
static uint64_t hash(const std::string& text, uint64_t h = 14695981039346656037u) {
    for (unsigned char c : text) h = (h ^ c) * 1099511628211u;
    return (h ^ text.size()) * 1099511628211u;
}
static void make_folder(const std::string& path) {
    for (size_t i = 1; i <= path.size(); i++)
        if (i == path.size() || path[i] == '/') mkdir(path.substr(0, i).c_str(), 0700);
}
static std::string own_folder() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(own_folder), &info)) fatal("cannot tell where libnvrtc.so lies");
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

// Runs a command, its output into `log`; true when it succeeded.
static bool run(const std::vector<std::string>& command, const std::string& log) {
    std::vector<char*> argv;
    for (auto& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int failed = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) {
        write_file(log, command[0] + ": " + strerror(failed) + " (softgpu needs g++; Debian: apt-get install g++)\n");
        return false;
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// ---- finding the kernels of a preprocessed source --------------------------------------------------------------------
struct Found {
    std::string name, bounds;
};
static size_t matching(const std::string& text, size_t open) {
    int depth = 0;
    for (size_t i = open; i < text.size(); i++) {
        if (text[i] == '(') depth++;
        if (text[i] == ')' && --depth == 0) return i;
    }
    return text.size() - 1;
}
static bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// From the attribute on: skips further attributes, remembers launch bounds, and takes the word before the parameters.
static Found read_declaration(const std::string& text, size_t at) {
    Found found;
    std::string word;
    for (size_t i = at; i < text.size(); i++) {
        if (is_word(text[i])) {
            size_t start = i;
            while (i < text.size() && is_word(text[i])) i++;
            word = text.substr(start, i - start);
            i--;
        } else if (text[i] == '(') {
            size_t end = matching(text, i);
            if (word != "__attribute__") {
                found.name = word;
                return found;
            }
            std::string attribute = text.substr(i, end - i);
            size_t bounds = attribute.find("softgpu_bounds(");
            if (bounds != std::string::npos) {
                size_t open = attribute.find('(', bounds);
                found.bounds = attribute.substr(open + 1, matching(attribute, open) - open - 1);
            }
            i = end;
        }
    }
    return found;
}
static std::vector<Found> find_kernels(const std::string& text) {
    const std::string marker = "__attribute__((softgpu_kernel))";
    std::vector<Found> all;
    for (size_t at = text.find(marker); at != std::string::npos; at = text.find(marker, at + marker.size())) {
        size_t start = text.find_last_of(";}", at);
        std::string before = text.substr(start == std::string::npos ? 0 : start, at - (start == std::string::npos ? 0 : start));
        if (before.find("extern \"C\"") == std::string::npos) continue;
        size_t declaration = at - before.size() + before.find("extern \"C\"");
        Found found = read_declaration(text, declaration);
        bool known = false;  // a declaration before the definition
        for (auto& other : all) known |= other.name == found.name;
        if (!known) all.push_back(found);
    }
    return all;
}
static std::string trailer(const std::vector<Found>& kernels) {
    std::string text = "\nextern \"C\" __attribute__((visibility(\"default\"))) const unsigned softgpu_kernel_count = " +
                       std::to_string(kernels.size()) +
                       ";\nextern \"C\" __attribute__((visibility(\"default\"))) const ::softgpu::Kernel softgpu_kernels[] = {\n";
    for (auto& k : kernels)
        text += "  ::softgpu::describe(\"" + k.name + "\", " + k.name + ", ::softgpu::first_bound(" + k.bounds + ")),\n";
    return text + "};\n";
}

// ---- options --------------------------------------------------------------------------------------------------------
static std::vector<std::string> translate(int count, const char* const* options) {
    std::vector<std::string> flags;
    std::string standard = "-std=c++17", arch = "520";
    for (int i = 0; i < count; i++) {
        std::string o = options[i];
        size_t equals = o.find('=');
        std::string value = equals == std::string::npos ? "" : o.substr(equals + 1);
        if (o.rfind("-D", 0) == 0) flags.push_back(o == "-D" && i + 1 < count ? "-D" + std::string(options[++i]) : o);
        else if (o.rfind("--define-macro", 0) == 0) flags.push_back("-D" + value);
        else if (o.rfind("-I", 0) == 0) flags.push_back(o);
        else if (o.rfind("--include-path", 0) == 0) flags.push_back("-I" + value);
        else if (o.rfind("-std", 0) == 0 || o.rfind("--std", 0) == 0) standard = "-std=" + value;
        else if (o.rfind("--gpu-architecture", 0) == 0 || o.rfind("-arch", 0) == 0) {
            arch.clear();
            for (char c : value)
                if (isdigit(static_cast<unsigned char>(c))) arch += c;
            arch += "0";
        }
    }
    flags.push_back(standard);
    flags.push_back("-D__CUDA_ARCH__=" + arch);
    return flags;
}

// ---- compilation --------------------------------------------------------------------------------------------------
static bool build(Program& p, const std::vector<std::string>& flags, const std::string& library) {
    std::string shim = own_folder() + "/shim", work = library + ".work." + std::to_string(getpid());
    make_folder(work);
    std::string name = p.name.empty() ? "kernels.cu" : p.name.substr(p.name.rfind('/') + 1);
    write_file(work + "/" + name, p.source);
    for (auto& header : p.headers)  // the shim's own header replaces the one with PTX
        if (header.first != "intrinsics.cuh") write_file(work + "/" + header.first, header.second);
    std::string cxx = setting("SOFTGPU_CXX", "g++"), log = work + "/log";
    std::vector<std::string> common = {cxx, "-O2", "-march=native", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
                                       "-fno-math-errno", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-w"};
    common.insert(common.end(), flags.begin(), flags.end());
    auto first = common;
    for (std::string word : {"-E", "-x", "c++", "-include", "cuda_shim.h"}) first.push_back(word);
    first.push_back("-I" + shim);
    first.push_back("-fmacro-prefix-map=" + work + "/=");
    for (std::string word : {work + "/" + name, std::string("-o"), work + "/expanded.ii"}) first.push_back(word);
    bool good = run(first, log);
    if (good) {
        std::string text = read_file(work + "/expanded.ii");
        write_file(work + "/whole.ii", text + trailer(find_kernels(text)));
        auto second = common;
        for (std::string word : {"-fpreprocessed", "-x", "c++-cpp-output", "-shared", "-Wl,-z,defs"}) second.push_back(word);
        for (std::string word : {work + "/whole.ii", std::string("-o"), work + "/library.so", std::string("-x"), std::string("none"),
                                 own_folder() + "/libcuda.so", std::string("-lm")})
            second.push_back(word);
        good = run(second, log);
    }
    p.log = read_file(log);
    if (good && rename((work + "/library.so").c_str(), library.c_str())) fatal("cannot rename to " + library);
    for (auto& header : p.headers) unlink((work + "/" + header.first).c_str());
    for (std::string file : {name, std::string("expanded.ii"), std::string("whole.ii"), std::string("log")}) unlink((work + "/" + file).c_str());
    rmdir(work.c_str());
    return good;
}

SOFTGPU_API int nvrtcVersion(int* major, int* minor) { return *major = 12, *minor = 8, NVRTC_SUCCESS; }
SOFTGPU_API int nvrtcCreateProgram(Program** program, const char* source, const char* name, int count,
                                   const char* const* texts, const char* const* names) {
    auto* p = new Program{source, name ? name : "", "", "", {}};
    for (int i = 0; i < count; i++) p->headers.emplace_back(names[i], texts[i]);
    return *program = p, NVRTC_SUCCESS;
}
SOFTGPU_API int nvrtcDestroyProgram(Program** program) {
    delete *program;
    return *program = nullptr, NVRTC_SUCCESS;
}
SOFTGPU_API int nvrtcCompileProgram(Program* p, int count, const char* const* options) {
    auto flags = translate(count, options);
    std::string folder = setting("SOFTGPU_CACHE", (own_folder() + "/kernels").c_str());
    uint64_t key = hash(own_folder(), hash(p->source, hash(p->name)));
    for (auto& flag : flags) key = hash(flag, key);
    for (auto& header : p->headers) key = hash(header.second, hash(header.first, key));
    char text[24];
    snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(key));
    make_folder(folder);
    std::string library = folder + "/" + text + ".so", lock_path = folder + "/" + text + ".lock";
    // Ranks and test threads that want the same library wait for the first.
    int lock = open(lock_path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (lock < 0) fatal("cannot write to the cache folder " + folder);
    flock(lock, LOCK_EX);
    bool good = access(library.c_str(), R_OK) == 0 || build(*p, flags, library);
    close(lock);
    if (good) p->image = "softgpu image " + library + "\n";
    return good ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}
static int copy_out(const std::string& text, char* to) { return memcpy(to, text.c_str(), text.size() + 1), NVRTC_SUCCESS; }
SOFTGPU_API int nvrtcGetPTXSize(Program* p, size_t* bytes) { return *bytes = p->image.size() + 1, NVRTC_SUCCESS; }
SOFTGPU_API int nvrtcGetPTX(Program* p, char* image) { return copy_out(p->image, image); }
SOFTGPU_API int nvrtcGetCUBINSize(Program* p, size_t* bytes) { return nvrtcGetPTXSize(p, bytes); }
SOFTGPU_API int nvrtcGetCUBIN(Program* p, char* image) { return copy_out(p->image, image); }
SOFTGPU_API int nvrtcGetProgramLogSize(Program* p, size_t* bytes) { return *bytes = p->log.size() + 1, NVRTC_SUCCESS; }
SOFTGPU_API int nvrtcGetProgramLog(Program* p, char* log) { return copy_out(p->log, log); }
SOFTGPU_API const char* nvrtcGetErrorString(int code) {
    return code == NVRTC_SUCCESS ? "NVRTC_SUCCESS" : code == NVRTC_ERROR_COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_INVALID_INPUT";
}
