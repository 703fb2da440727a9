// libnccl.so: collectives between processes of one machine, ordered on the software device's streams.
//
// Ranks meet in anonymous shared memory. The rank that made the id holds it open and the others open it through
// /proc, so it disappears with the processes, however they end. Each call is checked against the other ranks' call of
// the same number. Sums are in rank order; in bf16 they are rounded after each addition, as in a ring.
#include "device.h"
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

using namespace softgpu;

enum { NCCL_SUCCESS = 0, NCCL_SYSTEM = 2, NCCL_INVALID_ARGUMENT = 4, NCCL_INVALID_USAGE = 5, NCCL_REMOTE = 6 };
enum { FLOAT = 7, BFLOAT16 = 9 };
enum Kind { AllReduce, Broadcast, Reduce, AllGather, ReduceScatter };
static const char* const kind_names[] = {"AllReduce", "Broadcast", "Reduce", "AllGather", "ReduceScatter"};
static const size_t kChunk = 1 << 20;
static const int kMaxRanks = 16;

struct Call {
    int kind, type, operation, root;
    uint64_t count;
};
struct Slot {
    std::atomic<uint64_t> number;   // of the call that is posted
    std::atomic<uint64_t> phase;    // steps of copying passed, over all calls
    Call call;
};
struct Meeting {
    std::atomic<int> ranks, joined;
    Slot slots[kMaxRanks];
    char data[kMaxRanks][kChunk];
};
struct UniqueId {
    char text[128];
};
struct Communicator {
    Meeting* meeting;
    int rank, ranks;
    uint64_t calls = 0, phase = 0;
    std::atomic<int> error{NCCL_SUCCESS};
    std::atomic<bool> aborted{false};
};

// Waits for a condition of other ranks; false after SOFTGPU_NCCL_TIMEOUT seconds (default 60) or an abort.
template <class F> static bool wait_for(const Communicator* c, F condition) {
    auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(setting("SOFTGPU_NCCL_TIMEOUT", 60));
    for (int spins = 0; !condition(); spins++) {
        if (c->aborted) return false;
        if (spins > 200) std::this_thread::sleep_for(std::chrono::microseconds(50));
        if (std::chrono::steady_clock::now() > limit) return false;
    }
    return true;
}
static std::string describe(const Call& c) {
    return std::string(kind_names[c.kind]) + " of " + std::to_string(c.count) + " elements of type " + std::to_string(c.type) +
           (c.kind == Broadcast || c.kind == Reduce ? " with root " + std::to_string(c.root) : "");
}
static bool same(const Call& a, const Call& b) {
    return a.kind == b.kind && a.type == b.type && a.operation == b.operation && a.root == b.root && a.count == b.count;
}
static CUresult failed(Communicator* c, int error, const std::string& text) {
    c->error = error;
    if (c->aborted) return CUDA_SUCCESS;  // the program gave up on this communicator itself
    complain("nccl: rank " + std::to_string(c->rank) + ": " + text);
    return CUDA_ERROR_LAUNCH_FAILED;
}

// All ranks pass together; on a timeout, `text` gets who is missing.
static bool together(Communicator* c, std::string* text) {
    Meeting* m = c->meeting;
    uint64_t phase = ++c->phase;
    m->slots[c->rank].phase = phase;
    for (int r = 0; r < c->ranks; r++)
        if (!wait_for(c, [&] { return m->slots[r].phase >= phase; })) {
            *text = "rank " + std::to_string(r) + " went missing in the middle of a collective";
            return false;
        }
    return true;
}

static float load(const char* p, int type, size_t i) {
    uint32_t u;
    if (type == FLOAT) memcpy(&u, p + 4 * i, 4);
    else {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        u = static_cast<uint32_t>(h) << 16;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static float rounded(float f, int type) {
    if (type == FLOAT || f != f) return f;
    uint32_t u;
    memcpy(&u, &f, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}
static void store(char* p, int type, size_t i, float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (type == FLOAT) memcpy(p + 4 * i, &u, 4);
    else {
        uint16_t h = static_cast<uint16_t>(u >> 16);
        memcpy(p + 2 * i, &h, 2);
    }
}
static size_t type_size(int type) {
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return type >= 0 && type < 10 ? sizes[type] : 0;
}

// One chunk: `elements` from `first` of the whole vector (all ranks' parts end to end for gather and scatter).
static void combine(const Communicator* c, const Call& call, size_t first, size_t elements, char* out) {
    Meeting* m = c->meeting;
    size_t size = type_size(call.type), part = call.count / static_cast<size_t>(c->ranks);
    if (call.kind == Broadcast) {
        memcpy(out + first * size, m->data[call.root], elements * size);
        return;
    }
    for (size_t i = 0; i < elements; i++) {
        size_t at = first + i;
        if (call.kind == AllGather) {
            memcpy(out + at * size, m->data[at / part] + i * size, size);
            continue;
        }
        if (call.kind == ReduceScatter && at / part != static_cast<size_t>(c->rank)) continue;
        float sum = load(m->data[0], call.type, i);
        for (int r = 1; r < c->ranks; r++) {
            float x = load(m->data[r], call.type, i);
            sum = call.operation == 2 ? std::max(sum, x) : call.operation == 3 ? std::min(sum, x) : rounded(sum + x, call.type);
        }
        if (call.operation == 4) sum = rounded(sum / static_cast<float>(c->ranks), call.type);
        store(out, call.type, call.kind == ReduceScatter ? at % part : at, sum);
    }
}
// This rank's contribution to a chunk.
static void contribute(const Communicator* c, const Call& call, size_t first, size_t elements, const char* in) {
    size_t size = type_size(call.type), part = call.count / static_cast<size_t>(c->ranks);
    char* slot = c->meeting->data[c->rank];
    if (call.kind != AllGather) {
        memcpy(slot, in + first * size, elements * size);
        return;
    }
    size_t begin = std::max(first, static_cast<size_t>(c->rank) * part), end = std::min(first + elements, static_cast<size_t>(c->rank + 1) * part);
    if (begin < end) memcpy(slot + (begin - first) * size, in + (begin - static_cast<size_t>(c->rank) * part) * size, (end - begin) * size);
}

static CUresult meet(Communicator* c, const Call& call, const void* send, void* receive) {
    Meeting* m = c->meeting;
    uint64_t number = ++c->calls;
    m->slots[c->rank].call = call;
    m->slots[c->rank].number = number;
    std::string label = "call " + std::to_string(number) + ", " + describe(call);
    for (int r = 0; r < c->ranks; r++) {
        Slot& other = m->slots[r];
        if (!wait_for(c, [&] { return other.number >= number; }))
            return failed(c, NCCL_REMOTE, label + ": rank " + std::to_string(r) + " is missing, it is at call " + std::to_string(other.number.load()));
        if (other.number == number && !same(call, other.call))
            return failed(c, NCCL_INVALID_USAGE, label + ": rank " + std::to_string(r) + "'s call of this number is " + describe(other.call));
    }
    size_t per_chunk = kChunk / type_size(call.type);
    std::string text;
    for (size_t first = 0; first < call.count; first += per_chunk) {
        size_t elements = std::min(per_chunk, static_cast<size_t>(call.count) - first);
        contribute(c, call, first, elements, static_cast<const char*>(send));
        if (!together(c, &text)) return failed(c, NCCL_REMOTE, label + ": " + text);
        if (call.kind != Reduce || c->rank == call.root) combine(c, call, first, elements, static_cast<char*>(receive));
        if (!together(c, &text)) return failed(c, NCCL_REMOTE, label + ": " + text);
    }
    return CUDA_SUCCESS;
}

// ---- calls -------------------------------------------------------------------------------------------------------
static thread_local int group_depth;
static thread_local std::vector<std::function<CUresult()>> grouped;

static int issue(Communicator* c, Call call, size_t sent, size_t received, const void* send, void* receive, void* stream) {
    if (!c || c->error) return c ? c->error.load() : NCCL_INVALID_ARGUMENT;
    bool sums = call.kind == AllReduce || call.kind == Reduce || call.kind == ReduceScatter;
    if (!type_size(call.type) || (sums && call.type != FLOAT && call.type != BFLOAT16) || call.operation == 1) {
        complain("nccl: " + describe(call) + " is not known to softgpu");
        return NCCL_INVALID_ARGUMENT;
    }
    size_t size = type_size(call.type);
    auto work = [=]() -> CUresult {
        bool receives = call.kind != Reduce || c->rank == call.root;
        if (!check_range(reinterpret_cast<uintptr_t>(send), sent * size, "nccl: the source of " + describe(call)) ||
            (receives && !check_range(reinterpret_cast<uintptr_t>(receive), received * size, "nccl: the destination of " + describe(call))))
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        return meet(c, call, send, receive);
    };
    auto start = [=] { return enqueue(resolve(stream), kind_names[call.kind], work); };
    if (group_depth) return grouped.push_back(start), NCCL_SUCCESS;
    return start() ? NCCL_REMOTE : NCCL_SUCCESS;
}
SOFTGPU_API int ncclAllReduce(const void* send, void* receive, size_t n, int type, int op, Communicator* c, void* stream) {
    return issue(c, {AllReduce, type, op, 0, n}, n, n, send, receive, stream);
}
SOFTGPU_API int ncclBroadcast(const void* send, void* receive, size_t n, int type, int root, Communicator* c, void* stream) {
    return issue(c, {Broadcast, type, 0, root, n}, n, n, c && c->rank == root ? send : receive, receive, stream);
}
SOFTGPU_API int ncclReduce(const void* send, void* receive, size_t n, int type, int op, int root, Communicator* c, void* stream) {
    return issue(c, {Reduce, type, op, root, n}, n, n, send, receive, stream);
}
SOFTGPU_API int ncclAllGather(const void* send, void* receive, size_t n, int type, Communicator* c, void* stream) {
    size_t all = c ? n * static_cast<size_t>(c->ranks) : 0;
    return issue(c, {AllGather, type, 0, 0, all}, n, all, send, receive, stream);
}
SOFTGPU_API int ncclReduceScatter(const void* send, void* receive, size_t n, int type, int op, Communicator* c, void* stream) {
    size_t all = c ? n * static_cast<size_t>(c->ranks) : 0;
    return issue(c, {ReduceScatter, type, op, 0, all}, all, n, send, receive, stream);
}
SOFTGPU_API int ncclGroupStart() { return group_depth++, NCCL_SUCCESS; }
SOFTGPU_API int ncclGroupEnd() {
    if (group_depth == 0) return NCCL_INVALID_USAGE;
    if (--group_depth) return NCCL_SUCCESS;
    auto all = std::move(grouped);
    grouped.clear();
    int result = NCCL_SUCCESS;
    for (auto& start : all)
        if (start()) result = NCCL_REMOTE;
    return result;
}

// ---- communicators ----------------------------------------------------------------------------------------------------
SOFTGPU_API int ncclGetVersion(int* version) { return *version = 22500, NCCL_SUCCESS; }
SOFTGPU_API int ncclGetUniqueId(UniqueId* id) {
    memset(id, 0, sizeof *id);
    int fd = memfd_create("softgpu-nccl", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, sizeof(Meeting))) return NCCL_SYSTEM;
    snprintf(id->text, sizeof id->text, "/proc/%d/fd/%d", static_cast<int>(getpid()), fd);
    return NCCL_SUCCESS;
}
SOFTGPU_API int ncclCommInitRank(Communicator** out, int ranks, UniqueId id, int rank) {
    *out = nullptr;
    if (ranks < 1 || ranks > kMaxRanks || rank < 0 || rank >= ranks) return NCCL_INVALID_ARGUMENT;
    int fd = open(id.text, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        complain("nccl: rank " + std::to_string(rank) + ": the id names " + id.text + ", which cannot be opened");
        return NCCL_SYSTEM;
    }
    void* memory = mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return NCCL_SYSTEM;
    auto* c = new Communicator;
    c->meeting = static_cast<Meeting*>(memory);
    c->rank = rank;
    c->ranks = ranks;
    int agreed = 0;
    if (!c->meeting->ranks.compare_exchange_strong(agreed, ranks) && agreed != ranks) {
        complain("nccl: rank " + std::to_string(rank) + " joins " + std::to_string(ranks) + " ranks where another joined " + std::to_string(agreed));
        return NCCL_INVALID_USAGE;
    }
    c->meeting->joined++;
    if (!wait_for(c, [&] { return c->meeting->joined >= ranks; })) {
        complain("nccl: rank " + std::to_string(rank) + ": only " + std::to_string(c->meeting->joined.load()) + " of " + std::to_string(ranks) + " ranks joined");
        return NCCL_SYSTEM;
    }
    return *out = c, NCCL_SUCCESS;
}
SOFTGPU_API int ncclCommInitRankConfig(Communicator** out, int ranks, UniqueId id, int rank, void*) {
    return ncclCommInitRank(out, ranks, id, rank);
}
SOFTGPU_API int ncclCommFinalize(Communicator*) { return synchronize_all() ? NCCL_SYSTEM : NCCL_SUCCESS; }
// Kept mapped: a queued operation may still hold it.
SOFTGPU_API int ncclCommDestroy(Communicator* c) { return c->error = NCCL_INVALID_USAGE, NCCL_SUCCESS; }
SOFTGPU_API int ncclCommAbort(Communicator* c) { return c->aborted = true, c->error = NCCL_INVALID_USAGE, NCCL_SUCCESS; }
SOFTGPU_API int ncclCommGetAsyncError(Communicator* c, int* error) { return *error = c->error, NCCL_SUCCESS; }
SOFTGPU_API int ncclCommCount(Communicator* c, int* ranks) { return *ranks = c->ranks, NCCL_SUCCESS; }
SOFTGPU_API int ncclCommUserRank(Communicator* c, int* rank) { return *rank = c->rank, NCCL_SUCCESS; }
SOFTGPU_API int ncclCommCuDevice(Communicator*, int* device) { return *device = 0, NCCL_SUCCESS; }
SOFTGPU_API const char* ncclGetErrorString(int error) {
    return error == NCCL_SUCCESS ? "no error" : error == NCCL_REMOTE ? "remote process exited or there was a network error" : error == NCCL_INVALID_USAGE ? "invalid usage" : "unhandled system error";
}
SOFTGPU_API const char* ncclGetLastError(Communicator*) { return "see the lines that begin with softgpu: on stderr"; }
