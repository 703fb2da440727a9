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
    bool run(const Launch& launch, dim3 index);

    int barrier(int predicate, Site site, int kind);
    void collective(unsigned mask, Complete complete, void* payload, Site site, bool orders_memory);
    unsigned active_mask() const;
    void copy_issue(void* to, const void* from, bool valid);
    void copy_commit();
    bool copy_next(unsigned pending, Copy* copy);
    bool is_shared(const void* address) const;
    [[noreturn]] void fault(const std::string& text, Site site);
    void fiber_body();

    Context context{};

private:
    enum State : unsigned char { Ready, Running, InWarp, InBarrier, Done };
    struct Fiber {
        FiberState state_of_cpu;
        uint3 thread;
        unsigned lane, warp;
        State state;
        Site site;
        unsigned group, delivered;  // cp.async groups committed, next copy to deliver
        std::vector<Copy> copies;
    };
    struct Warp {
        unsigned exist, done, arrived;
        unsigned mask[32];
        void* payload[32];
        Complete complete[32];
    };

    void begin(const Launch& launch, dim3 index);
    void poison_shared();
    void check_guard();
    void push(unsigned fiber);
    void next(bool last);
    void leave();
    void complete_barrier();
    void complete_warp(Warp& warp, unsigned mask, unsigned base);
    void report_deadlock();
    void report(const std::string& text, Site site);

    const Launch* launch_ = nullptr;
    std::vector<Fiber> fibers_;
    std::vector<Warp> warps_;
    std::vector<unsigned> queue_;     // ring of fibers that can run; a power of two long
    size_t head_ = 0, tail_ = 0;
    FiberState home_{};               // the worker itself
    Fiber* current_ = nullptr;
    unsigned threads_ = 0, alive_ = 0, waiting_ = 0;
    unsigned votes_ = 0;
    int results_[4] = {};
    bool failed_ = false;
    char* stacks_ = nullptr;
    size_t stack_count_ = 0;
    char* dynamic_ = nullptr;
    size_t dynamic_capacity_ = 0;
    const Kernel* static_of_ = nullptr;  // whose static shared memory lies between these two
    char *static_begin_ = nullptr, *static_end_ = nullptr;
    // ThreadSanitizer's happens-before is kept per object address; new ones each block.
    char sync_[64][34] = {};
    unsigned serial_ = 0;
};

// Threads of a block start in this order; SOFTGPU_ORDER=forward|reverse|random:SEED. A kernel whose result depends on
// it has a race.
void order_threads(std::vector<unsigned>& order, unsigned seed);
}  // namespace softgpu
