// libnvrtc.so: "compiles" CUDA C++ with g++ and the shim into a library, cached by the hash of everything that matters.
//
// SOFTGPU_CACHE names the cache folder (default: `kernels` beside this library), SOFTGPU_CXX the compiler.
#include "compile.h"
#include "device.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace softgpu;

enum { NVRTC_SUCCESS = 0, NVRTC_ERROR_COMPILATION = 6 };

struct Program {
    std::string source, name, log, image;
    std::vector<std::pair<std::string, std::string>> headers;  // include name, text
};

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

// ---- the API ------------------------------------------------------------------------------------------------------
static bool build(Program& p, std::vector<std::string> flags, const std::string& library) {
    std::string work = library + ".work." + std::to_string(getpid());
    make_folder(work);
    std::string name = p.name.empty() ? "kernels.cu" : p.name.substr(p.name.rfind('/') + 1);
    write_file(work + "/" + name, p.source);
    for (auto& header : p.headers)  // the shim's own header replaces the one with PTX
        if (header.first != "intrinsics.cuh") write_file(work + "/" + header.first, header.second);
    for (const char* flag : {"-O2", "-march=native", "-shared", "-Wl,-z,defs"}) flags.push_back(flag);
    bool good = compile({work + "/" + name, own_folder() + "/shim", work, work + "/library.so", flags,
                         {own_folder() + "/libcuda.so", "-lm"}, false}, p.log);
    if (good && rename((work + "/library.so").c_str(), library.c_str())) fatal("cannot rename to " + library);
    for (auto& header : p.headers) unlink((work + "/" + header.first).c_str());
    unlink((work + "/" + name).c_str());
    rmdir(work.c_str());
    return good;
}

// A program may key its compiled kernels by this version, so it must be unique to this library and to each build of
// the shim.
SOFTGPU_API int nvrtcVersion(int* major, int* minor) {
    *major = 12;
    *minor = 1000 + static_cast<int>(hash(own_folder()) % 1000000);
    return NVRTC_SUCCESS;
}
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
