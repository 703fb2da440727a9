// libcuda.so: the entry points of the CUDA driver API that the program reaches through cudarc, over host memory and the
// queues of streams.cpp. Kernels and modules are in modules.cpp.
//
// The device looks like an H100; SOFTGPU_CAPABILITY (default 90) and SOFTGPU_DEVICES (default 8) change that.
#include "device.h"
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

using namespace softgpu;

struct SoftContext {
    int device;
};
static SoftContext contexts[64];
static thread_local SoftContext* current;
static int device_count() { return static_cast<int>(std::min(64L, setting("SOFTGPU_DEVICES", 8))); }
static int capability() { return static_cast<int>(setting("SOFTGPU_CAPABILITY", 90)); }

// SOFTGPU_WAITS=FILE: how often the host waited for the device, and how often that left the device idle.
static void write_waits() {
    std::string path = setting("SOFTGPU_WAITS", "");
    FILE* file = path.empty() ? nullptr : fopen(path.c_str(), "a");
    if (!file) return;
    HostWaits waits = host_waits();
    fprintf(file, "%ld %ld\n", waits.all, waits.idle);
    fclose(file);
}

static bool leaks_are_reported = true;
// For a test process, whose tests share devices until the end.
SOFTGPU_API void softgpu_ignore_leaks() { leaks_are_reported = false; }

// ---- initialisation and devices -----------------------------------------------------------------------------------
SOFTGPU_API CUresult cuInit(unsigned) {
    static bool once = [] {
        // A program that ends with an error need not tidy up.
        on_exit(
            [](int status, void*) {
                write_waits();
                if (status == 0 && leaks_are_reported) report_leaks();
            },
            nullptr);
        return true;
    }();
    return once && device_count() > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
SOFTGPU_API CUresult cuDriverGetVersion(int* version) { return *version = 12080, CUDA_SUCCESS; }
SOFTGPU_API CUresult cuDeviceGetCount(int* count) { return *count = device_count(), CUDA_SUCCESS; }
SOFTGPU_API CUresult cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    return *device = ordinal, CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, static_cast<size_t>(bytes), "softgpu (software CUDA device, sm_%d)", capability());
    return CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuDeviceTotalMem_v2(size_t* bytes, int) {
    size_t free_bytes;
    memory_info(&free_bytes, bytes);
    return CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuDeviceGetUuid_v2(char* uuid, int device) {
    memset(uuid, 0, 16);
    return uuid[15] = static_cast<char>(device + 1), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

// Bytes of shared memory that a block may ask for (CUDA C Programming Guide, table "Technical Specifications").
static int shared_opt_in() {
    int c = capability();
    return c == 80 || c == 87 ? 166912 : c == 86 || c == 89 || c >= 120 ? 101376 : 232448;
}
SOFTGPU_API CUresult cuDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024},   {2, 1024},        {3, 1024},      {4, 64},         // threads a block; x, y, z
        {5, 2147483647}, {6, 65535},   {7, 65535},                      // grid x, y, z
        {8, 49152},  {9, 65536},       {10, 32},       {12, 65536},     // shared, constant, warp, registers
        {13, 1755000}, {14, 512},      {16, 132},      {19, 1},         // kHz, alignment, SMs, host memory mapped
        {36, 2619000}, {37, 5120},     {38, 52428800}, {39, 2048},      // memory kHz, bus, L2, threads an SM
        {31, 1},     {32, 0},          {40, 3},        {41, 1},         // concurrent kernels, ECC, engines, unified
        {78, 1},     {82, 65536},      {95, 1},        {106, 32},       // priorities, registers an SM, cooperative, blocks
        {115, 1},                                                       // memory pools
    };
    if (attribute == 75) *value = capability() / 10;
    else if (attribute == 76) *value = capability() % 10;
    else if (attribute == 97) *value = shared_opt_in();
    else if (attribute == 81) *value = shared_opt_in() + 1024;
    else {
        auto entry = known.find(attribute);
        *value = entry == known.end() ? 0 : entry->second;
    }
    return CUDA_SUCCESS;
}

// ---- contexts -----------------------------------------------------------------------------------------------------
SOFTGPU_API CUresult cuDevicePrimaryCtxRetain(SoftContext** context, int device) {
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    contexts[device].device = device;
    return *context = &contexts[device], CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuDevicePrimaryCtxRelease_v2(int) { return CUDA_SUCCESS; }
SOFTGPU_API CUresult cuCtxSetCurrent(SoftContext* context) { return current = context, CUDA_SUCCESS; }
SOFTGPU_API CUresult cuCtxGetCurrent(SoftContext** context) { return *context = current, CUDA_SUCCESS; }
SOFTGPU_API CUresult cuCtxGetDevice(int* device) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    return *device = current->device, CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuCtxSynchronize() { return current ? synchronize_all() : CUDA_ERROR_INVALID_CONTEXT; }
SOFTGPU_API CUresult cuCtxSetFlags(unsigned) { return CUDA_SUCCESS; }
SOFTGPU_API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    return *greatest = -5, CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuProfilerStart() { return CUDA_SUCCESS; }
SOFTGPU_API CUresult cuProfilerStop() { return CUDA_SUCCESS; }

// ---- errors -------------------------------------------------------------------------------------------------------
struct ErrorText {
    int code;
    const char *name, *text;
};
static const ErrorText error_texts[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
};
static const ErrorText* error_text(int code) {
    for (auto& e : error_texts)
        if (e.code == code) return &e;
    return nullptr;
}
SOFTGPU_API CUresult cuGetErrorString(int code, const char** text) {
    auto* e = error_text(code);
    return *text = e ? e->text : nullptr, e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
SOFTGPU_API CUresult cuGetErrorName(int code, const char** name) {
    auto* e = error_text(code);
    return *name = e ? e->name : nullptr, e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- memory -------------------------------------------------------------------------------------------------------
SOFTGPU_API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    uintptr_t at = 0;
    CUresult result = allocate(&at, bytes, Place::Device, "cuMemAlloc");
    return *address = at, result;
}
SOFTGPU_API CUresult cuMemFree_v2(CUdeviceptr address) {
    CUresult result = synchronize_all();  // as cuMemFree does
    return result ? result : release(address, Place::Device);
}
SOFTGPU_API CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, void* stream) {
    if (capturing(resolve(stream))) {
        complain("cuMemAllocAsync during a capture: allocate before it");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    uintptr_t at = 0;
    CUresult result = allocate(&at, bytes, Place::Device, "cuMemAllocAsync");
    return *address = at, result;
}
SOFTGPU_API CUresult cuMemFreeAsync(CUdeviceptr address, void* stream) {
    return enqueue(resolve(stream), "release", [=] { return release(address, Place::Device); });
}
SOFTGPU_API CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { return memory_info(free_bytes, total), CUDA_SUCCESS; }
SOFTGPU_API CUresult cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    uintptr_t at = 0;
    CUresult result = allocate(&at, bytes, Place::Pinned, "cuMemHostAlloc");
    return *memory = reinterpret_cast<void*>(at), result;
}
SOFTGPU_API CUresult cuMemFreeHost(void* memory) {
    CUresult result = synchronize_all();
    return result ? result : release(reinterpret_cast<uintptr_t>(memory), Place::Pinned);
}

static CUresult copy(Stream* stream, const char* what, uintptr_t to, uintptr_t from, size_t bytes, bool check_to, bool check_from) {
    auto inside = [=] {
        return (!check_to || check_range(to, bytes, std::string("the destination of ") + what)) &&
               (!check_from || check_range(from, bytes, std::string("the source of ") + what));
    };
    if (!inside()) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, what, [=]() -> CUresult {
        if (!inside()) return CUDA_ERROR_ILLEGAL_ADDRESS;
        memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
        return CUDA_SUCCESS;
    });
}
SOFTGPU_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* handle) {
    Stream* stream = resolve(handle);
    // From pinned memory the copy reads when it runs, so a host that overwrites the buffer too early is caught. Other
    // memory is staged before the call returns.
    if (is_pinned(from, bytes)) return copy(stream, "cuMemcpyHtoDAsync", to, reinterpret_cast<uintptr_t>(from), bytes, true, true);
    if (!check_range(to, bytes, "the destination of cuMemcpyHtoDAsync")) return CUDA_ERROR_INVALID_VALUE;
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return enqueue(stream, "cuMemcpyHtoDAsync", [=]() -> CUresult {
        if (!check_range(to, bytes, "the destination of cuMemcpyHtoDAsync")) return CUDA_ERROR_ILLEGAL_ADDRESS;
        memcpy(reinterpret_cast<void*>(to), staged->data(), bytes);
        return CUDA_SUCCESS;
    });
}
SOFTGPU_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* handle) {
    Stream* stream = resolve(handle);
    bool pinned = is_pinned(to, bytes);
    CUresult result = copy(stream, "cuMemcpyDtoHAsync", reinterpret_cast<uintptr_t>(to), from, bytes, pinned, true);
    // To pageable memory the call returns when the copy is done.
    return result || pinned || capturing(stream) ? result : synchronize(stream);
}
SOFTGPU_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
    return copy(resolve(stream), "cuMemcpyDtoDAsync", to, from, bytes, true, true);
}
SOFTGPU_API CUresult cuMemcpyPeerAsync(CUdeviceptr to, void*, CUdeviceptr from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
static CUresult finish(CUresult result) { return result ? result : synchronize(resolve(nullptr)); }
SOFTGPU_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return finish(cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr));
}
SOFTGPU_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return finish(cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr));
}
SOFTGPU_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return finish(cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr));
}

template <class T> static CUresult set(CUdeviceptr to, T value, size_t count, void* handle, const char* what) {
    auto inside = [=] { return check_range(to, count * sizeof(T), what); };
    if (!inside()) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(resolve(handle), what, [=]() -> CUresult {
        if (!inside()) return CUDA_ERROR_ILLEGAL_ADDRESS;
        auto* p = reinterpret_cast<T*>(to);
        for (size_t i = 0; i < count; i++) p[i] = value;
        return CUDA_SUCCESS;
    });
}
SOFTGPU_API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, void* stream) {
    return set(to, value, count, stream, "cuMemsetD8Async");
}
SOFTGPU_API CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, void* stream) {
    return set(to, value, count, stream, "cuMemsetD16Async");
}
SOFTGPU_API CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, void* stream) {
    return set(to, value, count, stream, "cuMemsetD32Async");
}
SOFTGPU_API CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    return finish(cuMemsetD8Async(to, value, count, nullptr));
}

// ---- streams and events ---------------------------------------------------------------------------------------------
SOFTGPU_API CUresult cuStreamCreate(Stream** stream, unsigned) { return *stream = create_stream(), CUDA_SUCCESS; }
SOFTGPU_API CUresult cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
SOFTGPU_API CUresult cuStreamDestroy_v2(void* stream) { return destroy_stream(resolve(stream)); }
SOFTGPU_API CUresult cuStreamSynchronize(void* stream) { return synchronize(resolve(stream)); }
SOFTGPU_API CUresult cuStreamQuery(void* stream) { return query(resolve(stream)); }
SOFTGPU_API CUresult cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    return enqueue(resolve(stream), "a host function", [=]() -> CUresult { return function(data), CUDA_SUCCESS; });
}

// A handle outlives cuEventDestroy, which a card permits while the event is still pending.
struct SoftEvent {
    Event state = std::make_shared<EventState>();
    bool alive = true;
};
static bool usable(const SoftEvent* e) {
    if (e && e->alive) return true;
    complain("an event is used after its destruction");
    return false;
}
SOFTGPU_API CUresult cuEventCreate(SoftEvent** event, unsigned) { return *event = new SoftEvent, CUDA_SUCCESS; }
SOFTGPU_API CUresult cuEventDestroy_v2(SoftEvent* event) {
    if (!usable(event)) return CUDA_ERROR_INVALID_HANDLE;
    return event->alive = false, CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuEventRecord(SoftEvent* event, void* stream) {
    return usable(event) ? record(resolve(stream), event->state) : CUDA_ERROR_INVALID_HANDLE;
}
// A planted mistake: SOFTGPU_DROP_WAIT=A<B:K leaves out the K-th wait, from 0, of stream A (0 is the host) for an
// event that stream B recorded.
static bool forgotten(int waiting, const SoftEvent* event) {
    static std::string text = setting("SOFTGPU_DROP_WAIT", "");
    static std::atomic<long> waits{0};
    int from = -1, of = -1;
    long number = -1;
    return sscanf(text.c_str(), "%d<%d:%ld", &from, &of, &number) == 3 && usable(event) && waiting == from &&
           event->state->stream == of && waits++ == number;
}
SOFTGPU_API CUresult cuStreamWaitEvent(void* stream, SoftEvent* event, unsigned) {
    if (forgotten(resolve(stream)->id, event)) return CUDA_SUCCESS;
    return usable(event) ? wait(resolve(stream), event->state) : CUDA_ERROR_INVALID_HANDLE;
}
SOFTGPU_API CUresult cuEventSynchronize(SoftEvent* event) {
    if (forgotten(0, event)) return CUDA_SUCCESS;
    return usable(event) ? synchronize(event->state) : CUDA_ERROR_INVALID_HANDLE;
}
SOFTGPU_API CUresult cuEventQuery(SoftEvent* event) {
    return usable(event) ? query(event->state) : CUDA_ERROR_INVALID_HANDLE;
}
SOFTGPU_API CUresult cuEventElapsedTime_v2(float* milliseconds, SoftEvent* from, SoftEvent* to) {
    if (!usable(from) || !usable(to)) return CUDA_ERROR_INVALID_HANDLE;
    if (from->state->done < from->state->recorded || to->state->done < to->state->recorded) return CUDA_ERROR_NOT_READY;
    return *milliseconds = static_cast<float>(to->state->milliseconds - from->state->milliseconds), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuEventElapsedTime(float* milliseconds, SoftEvent* from, SoftEvent* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

// ---- graphs -----------------------------------------------------------------------------------------------------
struct SoftGraph {
    std::shared_ptr<Capture> capture;
};
SOFTGPU_API CUresult cuStreamBeginCapture_v2(void* stream, int mode) {
    return begin_capture(resolve(stream), mode == 1);  // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
}
SOFTGPU_API CUresult cuStreamEndCapture(void* stream, SoftGraph** graph) {
    *graph = nullptr;
    std::shared_ptr<Capture> capture;
    CUresult result = end_capture(resolve(stream), &capture);
    if (!result) *graph = new SoftGraph{capture};
    return result;
}
SOFTGPU_API CUresult cuStreamIsCapturing(void* stream, int* status) {
    return *status = capturing(resolve(stream)), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuGraphInstantiateWithFlags(SoftGraph** executable, SoftGraph* graph, unsigned long long) {
    return *executable = new SoftGraph(*graph), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuGraphGetNodes(SoftGraph* graph, void**, size_t* count) {
    return *count = graph->capture->nodes.size(), CUDA_SUCCESS;
}
SOFTGPU_API CUresult cuGraphUpload(SoftGraph*, void*) { return CUDA_SUCCESS; }
SOFTGPU_API CUresult cuGraphLaunch(SoftGraph* executable, void* stream) {
    auto capture = executable->capture;
    return enqueue(resolve(stream), "a graph", [capture] { return run_graph(*capture); });
}
SOFTGPU_API CUresult cuGraphExecDestroy(SoftGraph* executable) { return delete executable, CUDA_SUCCESS; }
SOFTGPU_API CUresult cuGraphDestroy(SoftGraph* graph) { return delete graph, CUDA_SUCCESS; }
