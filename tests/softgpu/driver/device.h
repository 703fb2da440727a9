// State that the parts of the software driver share: memory, streams, events, graphs, kernels.
//
// The names of cuda.h that the project's binary reaches through cudarc are defined here with the values of the CUDA
// driver API; cuda.h itself is not needed to build this.
#pragma once
#include "../shim/report.h"
#include "../shim/vector_types_host.h"
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#define SOFTGPU_API extern "C" __attribute__((visibility("default")))

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_FILE_NOT_FOUND = 301,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
};

namespace softgpu {
// ---- memory.cpp -------------------------------------------------------------------------------------------------
enum class Place { Device, Pinned };
struct Allocation {
    uintptr_t begin;
    size_t bytes;
    Place place;
    bool freed;
    std::string owner;  // what allocated it, for reports
};
CUresult allocate(uintptr_t* address, size_t bytes, Place place, const char* owner);
CUresult release(uintptr_t address, Place place);
// Reports `what` when [address, address + bytes) is not wholly inside live memory of the device (or pinned memory).
bool check_range(uintptr_t address, size_t bytes, const std::string& what);
bool is_pinned(const void* address, size_t bytes);
// Reports `what` when the bytes after the allocation that holds `address` were written.
void check_guard(uintptr_t address, const std::string& what);
bool find_live(uintptr_t address, uintptr_t* begin, size_t* bytes);  // the allocation that holds it
void memory_info(size_t* free_bytes, size_t* total);
void report_leaks();

// ---- streams.cpp ------------------------------------------------------------------------------------------------
struct Capture;
struct EventState {
    uint64_t recorded = 0;  // records asked for
    uint64_t done = 0;      // records carried out
    double milliseconds = 0;
    int stream = -1;                   // that recorded it last
    std::shared_ptr<Capture> capture;  // set while its last record belongs to a capture
    std::vector<size_t> nodes;
};
typedef std::shared_ptr<EventState> Event;
typedef std::function<CUresult()> Work;
struct Operation {
    const char* what;
    Work run;
    Event event;      // waits for or records it
    uint64_t number = 0;
    bool waits = false;
};
struct Stream {
    int id = 0;
    std::deque<Operation> queue;
    bool running = false;
    bool alive = true;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> frontier;  // nodes that the next captured one depends on
};
struct Node {
    const char* what;
    Work run;
    std::vector<size_t> after;
};
struct Capture {
    std::vector<Node> nodes;
    Stream* origin = nullptr;
    std::vector<Stream*> joined;
    bool broken = false;
    std::thread::id thread;  // that began it
    bool thread_local_mode = false;
};

Stream* resolve(void* handle);  // null, legacy and per-thread handles are the default stream
Stream* create_stream();
CUresult destroy_stream(Stream*);
// Puts work at the end of a stream's queue, or into the graph that is being captured from it.
CUresult enqueue(Stream*, const char* what, Work run);
CUresult record(Stream*, const Event&);
CUresult wait(Stream*, const Event&);
CUresult synchronize(Stream*);          // the host waits
CUresult synchronize_all();
CUresult synchronize(const Event&);
CUresult query(const Event&);
CUresult query(Stream*);
CUresult begin_capture(Stream*, bool thread_local_mode);
CUresult end_capture(Stream*, std::shared_ptr<Capture>*);
CUresult run_graph(const Capture&);
bool capturing(Stream*);
struct HostWaits {
    long all;   // waits of the host for work that was not done
    long idle;  // those after which no stream had any work left
};
HostWaits host_waits();
CUresult first_error();                 // of any operation so far; sticky, as on a card

// ---- record.cpp -------------------------------------------------------------------------------------------------
void record_launch(const Launch&);

// ---- used by the libraries beside libcuda ---------------------------------------------------------------------------
void parallel(size_t count, const std::function<void(size_t)>& body);  // on the kernel workers
}  // namespace softgpu
