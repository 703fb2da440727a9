// One thread block's execution: its fibers, warps, barrier and poisoned shared memory. A worker thread owns one and
// reuses it, stacks included, for block after block.
#pragma once
#include "vector_types_host.h"
#include "fiber.h"
#include <cstring>
#include <string>
#include <vector>

namespace softgpu {
struct Site {
    const char* file;
    int line;
    const char* what;
};

class Block {
public:
    Block();
    ~Block();
    // Runs block `index` of the grid; false when something was reported.
    bool run(const Launch& launch, const Order& order, dim3 index);

    int barrier(int predicate, const char* file, int line, int kind);
    void collective(unsigned mask, Complete complete, void* payload, const char* what, const char* file, int line,
                    bool orders_memory);
    unsigned active_mask() const;
    void copy_issue(void* to, const void* from, bool valid);
    void copy_commit();
    bool copy_next(unsigned pending, Copy* copy);
    bool is_shared(const void* address) const;
    [[noreturn]] void fault(const std::string& text, Site site);
    void fiber_body();

    Context context{};

private:
    struct alignas(64) Fiber {  // one cache line: with 256 threads a switch would otherwise miss the first-level cache
        Registers registers;
        uint3 thread;
        unsigned lane, warp;
        Site site;              // where it waits
    };
    struct Copies {
        std::vector<Copy> pending;
        unsigned group = 0;      // groups committed
        size_t delivered = 0;    // of `pending`
    };
    struct Warp {
        unsigned exist, done;
        unsigned ready;          // lanes that can run
        unsigned in_warp;        // lanes that wait in a warp operation
        unsigned in_barrier;
        unsigned mask[32];
        void* payload[32];
        Complete complete[32];
    };

    static void place(Fiber& fiber, const char* what, const char* file, int line);
    void begin(const Launch& launch, dim3 index);
    void poison_shared();
    void check_guard();
    void next(bool last);
    Fiber* choose();
    unsigned pick(unsigned lanes);
    void leave();
    void complete_barrier();
    void complete_warp(Warp& warp, unsigned mask);
    void report_deadlock();
    void report(const std::string& text, Site site);
    size_t index(const Fiber* fiber) const { return static_cast<size_t>(fiber - fibers_.data()); }
    void switch_to(Registers& from, Fiber* to, bool last);

    const Launch* launch_ = nullptr;
    Order order_;
    uint64_t random_ = 0;
    std::vector<Fiber> fibers_;
    std::vector<Copies> copies_;
    std::vector<void*> tsan_;
    std::vector<Warp> warps_;
    Registers home_{};                // the worker itself
    void* home_tsan_ = nullptr;
    Fiber* current_ = nullptr;
    size_t warp_ = 0;                 // runs as far as it can before the next one: its stacks stay in the cache
    unsigned threads_ = 0, alive_ = 0, waiting_ = 0;
    unsigned votes_ = 0;
    Site barrier_site_{};             // of the first thread that waits there
    int results_[4] = {};
    bool failed_ = false;
    char* stacks_ = nullptr;
    size_t stack_count_ = 0;
    char* dynamic_ = nullptr;
    size_t dynamic_capacity_ = 0;
    const Kernel* static_of_ = nullptr;  // whose static shared memory lies between these two
    char *static_begin_ = nullptr, *static_end_ = nullptr;
    // ThreadSanitizer orders events by object address: one per warp, the barrier, start and end of a block. Each
    // block has new ones.
    enum { kBarrier = 32, kStart = 33, kEnd = 34 };
    char* sync(unsigned object) { return sync_[serial_][object]; }
    char sync_[64][35][8] = {};
    unsigned serial_ = 0;
};

}  // namespace softgpu
