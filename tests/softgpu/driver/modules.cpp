// Modules, functions and launches: a "compiled" image names a library that nvrtc.cpp built, whose table describes its
// kernels. Every launch is checked against a card's limits, and its pointers against live memory.
#include "device.h"
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <memory>
#include <unistd.h>

using namespace softgpu;

struct SoftFunction {
    const Kernel* kernel;
    unsigned dynamic_limit = 49152;  // until cuFuncSetAttribute raises it
};
struct SoftModule {
    std::map<std::string, std::unique_ptr<SoftFunction>> functions;
};

static const char kMagic[] = "softgpu image ";

SOFTGPU_API CUresult cuModuleLoadData(SoftModule** module, const void* image) {
    const char* text = static_cast<const char*>(image);
    if (strncmp(text, kMagic, sizeof kMagic - 1)) return CUDA_ERROR_INVALID_IMAGE;
    std::string path(text + sizeof kMagic - 1);
    path = path.substr(0, path.find('\n'));
    // A program may keep images for longer than the kernels' folder exists; it then compiles again, as after a driver
    // update.
    if (access(path.c_str(), R_OK)) return CUDA_ERROR_INVALID_IMAGE;
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        complain(std::string("cuModuleLoadData: ") + dlerror());
        return CUDA_ERROR_FILE_NOT_FOUND;
    }
    auto* table = static_cast<const Kernel*>(dlsym(library, "softgpu_kernels"));
    auto* count = static_cast<const unsigned*>(dlsym(library, "softgpu_kernel_count"));
    *module = new SoftModule;
    for (unsigned i = 0; i < *count; i++) {
        auto function = std::make_unique<SoftFunction>();
        function->kernel = &table[i];
        (*module)->functions[table[i].name] = std::move(function);
    }
    return CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuModuleLoad(SoftModule** module, const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::string text;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
    fclose(file);
    return cuModuleLoadData(module, text.c_str());
}
SOFTGPU_API CUresult cuModuleLoadDataEx(SoftModule** module, const void* image, unsigned, void*, void*) {
    return cuModuleLoadData(module, image);
}
// Kept: a launch may still be queued. The library stays mapped, as its thread-local data may be in use.
SOFTGPU_API CUresult cuModuleUnload(SoftModule*) { return synchronize_all(); }
SOFTGPU_API CUresult cuModuleGetFunction(SoftFunction** function, SoftModule* module, const char* name) {
    auto entry = module->functions.find(name);
    if (entry == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
    return *function = entry->second.get(), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, SoftModule*, const char*) { return CUDA_ERROR_NOT_FOUND; }

extern "C" CUresult cuDeviceGetAttribute(int*, int, int);
SOFTGPU_API CUresult cuFuncSetAttribute(SoftFunction* function, int attribute, int value) {
    if (attribute != 8) return CUDA_SUCCESS;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    int most = 0;
    cuDeviceGetAttribute(&most, 97, 0);
    if (value < 0 || value > most) {
        complain(std::string("kernel ") + function->kernel->name + ": " + std::to_string(value) +
                 " bytes of dynamic shared memory are more than the device's " + std::to_string(most));
        return CUDA_ERROR_INVALID_VALUE;
    }
    return function->dynamic_limit = static_cast<unsigned>(value), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuFuncGetAttribute(int* value, int attribute, SoftFunction* function) {
    // Facts that only a compiler for a real card knows (registers, local memory) read as 0.
    *value = attribute == 0 ? static_cast<int>(function->kernel->max_threads)
           : attribute == 8 ? static_cast<int>(function->dynamic_limit)
                            : 0;
    return CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuFuncSetCacheConfig(SoftFunction*, int) { return CUDA_SUCCESS; }
SOFTGPU_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, SoftFunction*, int threads, size_t) {
    return *blocks = threads > 0 ? 2048 / threads : 0, CUDA_SUCCESS;
}

static std::string shape(dim3 d) {
    return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
}

// What is wrong with a launch's geometry; empty if nothing is.
static std::string wrong_with(const SoftFunction& f, dim3 grid, dim3 block, unsigned dynamic) {
    uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z) return "an empty grid " + shape(grid);
    if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) return "a grid of " + shape(grid) + ": at most 2147483647x65535x65535";
    if (!threads || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024)
        return "a block of " + shape(block) + ": at most 1024 threads, z at most 64";
    if (threads > f.kernel->max_threads)
        return std::to_string(threads) + " threads where __launch_bounds__ promises at most " + std::to_string(f.kernel->max_threads);
    if (dynamic > f.dynamic_limit)
        return std::to_string(dynamic) + " bytes of dynamic shared memory where cuFuncSetAttribute allows " + std::to_string(f.dynamic_limit);
    return "";
}

// A launch's arguments, copied when it is issued, as the real driver does.
struct Arguments {
    std::vector<uint64_t> storage;
    std::vector<void*> values;
};
static std::shared_ptr<Arguments> copy_arguments(const Kernel& kernel, void** values) {
    auto copy = std::make_shared<Arguments>();
    size_t words = 0;
    for (unsigned i = 0; i < kernel.arguments; i++) words += (kernel.sizes[i] + 15) / 16 * 2;
    copy->storage.resize(words);
    size_t at = 0;
    for (unsigned i = 0; i < kernel.arguments; i++) {
        memcpy(&copy->storage[at], values[i], kernel.sizes[i]);
        copy->values.push_back(&copy->storage[at]);
        at += (kernel.sizes[i] + 15) / 16 * 2;
    }
    return copy;
}
static uintptr_t pointer(const Arguments& a, unsigned i) {
    uintptr_t value;
    memcpy(&value, a.values[i], sizeof value);
    return value;
}

// The memory that a launch can reach through its arguments, before the launch.
class Snapshot {
public:
    Snapshot(const Kernel& kernel, const Arguments& arguments) {
        for (unsigned i = 0; i < kernel.arguments; i++) {
            uintptr_t begin;
            size_t bytes;
            if (!kernel.pointers[i] || !find_live(pointer(arguments, i), &begin, &bytes) || parts_.count(begin)) continue;
            parts_[begin].assign(reinterpret_cast<char*>(begin), reinterpret_cast<char*>(begin) + bytes);
        }
    }
    void restore() const {
        for (auto& part : parts_) memcpy(reinterpret_cast<void*>(part.first), part.second.data(), part.second.size());
    }
    bool operator==(const Snapshot& other) const { return parts_ == other.parts_; }

private:
    std::map<uintptr_t, std::vector<char>> parts_;
};

// SOFTGPU_ORDER=compare: the grid runs forward, in reverse and in one random order, and must leave the same bytes.
static bool run_compared(const Launch& launch, const Arguments& arguments) {
    Snapshot before(*launch.kernel, arguments);
    if (!run_grid(launch, {Order::Forward, 0})) return false;
    Snapshot after(*launch.kernel, arguments);
    for (Order order : {Order{Order::Reverse, 0}, Order{Order::Random, 1}}) {
        before.restore();
        if (!run_grid(launch, order)) return false;
        if (after == Snapshot(*launch.kernel, arguments)) continue;
        complain(std::string("kernel ") + launch.kernel->name + ": the result depends on the order of threads or blocks");
        return false;
    }
    return true;
}

static CUresult execute(const Launch& launch, const Arguments& arguments) {
    static const bool compares = setting("SOFTGPU_ORDER", "forward") == "compare";
    const Kernel& k = *launch.kernel;
    auto label = [&](unsigned i) { return std::string("kernel ") + k.name + ", argument " + std::to_string(i) + ","; };
    for (unsigned i = 0; i < k.arguments; i++)
        if (k.pointers[i] && pointer(arguments, i) && !check_range(pointer(arguments, i), 1, label(i))) return CUDA_ERROR_ILLEGAL_ADDRESS;
    record_launch(launch);
    if (!(compares ? run_compared(launch, arguments) : run_grid(launch, chosen_order()))) return CUDA_ERROR_LAUNCH_FAILED;
    for (unsigned i = 0; i < k.arguments; i++)
        if (k.pointers[i] && pointer(arguments, i)) check_guard(pointer(arguments, i), label(i));
    return CUDA_SUCCESS;
}

SOFTGPU_API CUresult cuLaunchKernel(SoftFunction* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                    unsigned bz, unsigned dynamic, void* stream, void** values, void** extra) {
    dim3 grid(gx, gy, gz), block(bx, by, bz);
    std::string wrong = wrong_with(*function, grid, block, dynamic);
    if (extra) wrong = "the `extra` form of arguments, which softgpu does not take";
    if (!wrong.empty()) {
        complain(std::string("kernel ") + function->kernel->name + ": launched with " + wrong);
        return CUDA_ERROR_INVALID_VALUE;
    }
    const Kernel* kernel = function->kernel;
    auto arguments = copy_arguments(*kernel, values);
    return enqueue(resolve(stream), kernel->name, [=] {
        Launch launch{kernel, grid, block, dynamic, arguments->values.data()};
        return execute(launch, *arguments);
    });
}
