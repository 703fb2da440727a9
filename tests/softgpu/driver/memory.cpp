// Device and pinned memory. It is poisoned when allocated and when released, has guard bytes after each allocation,
// and is kept a while after its release so that a late use can be named.
#include "device.h"
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace softgpu {
static const size_t kAlignment = 512;  // of cuMemAlloc
static const size_t kGuard = 256;
static const unsigned char kGuardByte = 0xA7;
static const unsigned char kPoison = 0xFF;  // NaN as f32 and bf16, -1 as an integer
static const size_t kQuarantine = size_t(256) << 20;

struct Heap {
    std::mutex mutex;
    std::map<uintptr_t, Allocation> all;
    std::deque<uintptr_t> freed;
    size_t quarantined = 0, used = 0, peak = 0;
};
static Heap& heap() {
    static Heap* instance = new Heap;  // outlives the program's own destructors
    return *instance;
}
static size_t total_bytes() { return static_cast<size_t>(setting("SOFTGPU_MEMORY_MB", 16384)) << 20; }

static const Allocation* find(uintptr_t address) {
    auto after = heap().all.upper_bound(address);
    if (after == heap().all.begin()) return nullptr;
    const Allocation& candidate = std::prev(after)->second;
    return address <= candidate.begin + candidate.bytes + kGuard ? &candidate : nullptr;
}
static std::string describe(const Allocation& a) {
    return std::to_string(a.bytes) + " bytes allocated by " + a.owner;
}
static bool guard_intact(const Allocation& a) {
    auto* guard = reinterpret_cast<const unsigned char*>(a.begin + a.bytes);
    for (size_t i = 0; i < kGuard; i++)
        if (guard[i] != kGuardByte) return false;
    return true;
}
static void drop_oldest() {
    uintptr_t address = heap().freed.front();
    heap().freed.pop_front();
    auto entry = heap().all.find(address);
    heap().quarantined -= entry->second.bytes;
    heap().all.erase(entry);
    free(reinterpret_cast<void*>(address));
}

CUresult allocate(uintptr_t* address, size_t bytes, Place place, const char* owner) {
    *address = 0;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard<std::mutex> lock(heap().mutex);
    if (place == Place::Device && heap().used + bytes > total_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
    void* memory = nullptr;
    if (posix_memalign(&memory, place == Place::Device ? kAlignment : 4096, bytes + kGuard)) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(memory, kPoison, bytes);
    memset(static_cast<char*>(memory) + bytes, kGuardByte, kGuard);
    *address = reinterpret_cast<uintptr_t>(memory);
    heap().all[*address] = {*address, bytes, place, false, owner};
    if (place == Place::Device) heap().used += bytes;
    heap().peak = std::max(heap().peak, heap().used);
    return CUDA_SUCCESS;
}

CUresult release(uintptr_t address, Place place) {
    if (!address) return CUDA_SUCCESS;
    std::unique_lock<std::mutex> lock(heap().mutex);
    auto entry = heap().all.find(address);
    if (entry == heap().all.end() || entry->second.place != place) {
        lock.unlock();
        complain("release of an address that was never allocated");
        return CUDA_ERROR_INVALID_VALUE;
    }
    Allocation& a = entry->second;
    if (a.freed || !guard_intact(a)) {
        std::string text = a.freed ? "released twice: " + describe(a) : "written past its end: " + describe(a);
        lock.unlock();
        complain(text);
        return CUDA_ERROR_INVALID_VALUE;
    }
    memset(reinterpret_cast<void*>(a.begin), kPoison, a.bytes);
    a.freed = true;
    if (place == Place::Device) heap().used -= a.bytes;
    heap().freed.push_back(address);
    heap().quarantined += a.bytes;
    while (heap().quarantined > kQuarantine) drop_oldest();
    return CUDA_SUCCESS;
}

bool check_range(uintptr_t address, size_t bytes, const std::string& what) {
    if (bytes == 0) return true;
    std::unique_lock<std::mutex> lock(heap().mutex);
    const Allocation* a = find(address);
    std::string text;
    if (!a) text = "an address outside all device memory";
    else if (a->freed) text = "memory after its release (" + describe(*a) + ")";
    else if (address + bytes > a->begin + a->bytes)
        text = "bytes " + std::to_string(address - a->begin) + " to " + std::to_string(address - a->begin + bytes) + " of " + describe(*a);
    else return true;
    lock.unlock();
    complain(what + " touches " + text);
    return false;
}

bool is_pinned(const void* address, size_t bytes) {
    std::lock_guard<std::mutex> lock(heap().mutex);
    auto at = reinterpret_cast<uintptr_t>(address);
    const Allocation* a = find(at);
    return a && a->place == Place::Pinned && !a->freed && at + bytes <= a->begin + a->bytes;
}

void check_guard(uintptr_t address, const std::string& what) {
    std::unique_lock<std::mutex> lock(heap().mutex);
    const Allocation* a = find(address);
    if (!a || a->freed || guard_intact(*a)) return;
    std::string text = what + " wrote past the end of " + describe(*a);
    lock.unlock();
    complain(text);
}

bool find_live(uintptr_t address, uintptr_t* begin, size_t* bytes) {
    std::lock_guard<std::mutex> lock(heap().mutex);
    const Allocation* a = find(address);
    if (!a || a->freed) return false;
    *begin = a->begin;
    *bytes = a->bytes;
    return true;
}

void memory_info(size_t* free_bytes, size_t* total) {
    std::lock_guard<std::mutex> lock(heap().mutex);
    *total = total_bytes();
    *free_bytes = *total - std::min(*total, heap().used);
}

void report_leaks() {
    std::unique_lock<std::mutex> lock(heap().mutex);
    size_t count = 0, bytes = 0;
    const Allocation* largest = nullptr;
    for (auto& entry : heap().all) {
        if (entry.second.freed) continue;
        count++;
        bytes += entry.second.bytes;
        if (!largest || largest->bytes < entry.second.bytes) largest = &entry.second;
    }
    if (!count) return;
    std::string text = std::to_string(count) + " allocations (" + std::to_string(bytes) +
                       " bytes) never released; the largest: " + describe(*largest);
    lock.unlock();
    complain(text);
}
}  // namespace softgpu
