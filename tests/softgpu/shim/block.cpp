// Execution of one block: fibers run until they wait, then hand over to the next one that can run.
#include "block.h"
#include "report.h"
#include <cstdio>
#include <cstdlib>
#include <link.h>
#include <sys/mman.h>

namespace softgpu {
__thread Context* context __attribute__((tls_model("initial-exec")));
static thread_local Block* block_of_worker;

// A stack is a multiple of a page plus five cache lines: with a plain power of two, the hot lines of all stacks would
// fall into one set of the cache.
static const size_t kStack = (has_asan() || has_tsan() ? 256 << 10 : 64 << 10) + 320;
static const size_t kGuard = 256;  // bytes after dynamic shared memory that no kernel may touch
static const unsigned char kPoison = 0xFF;  // NaN as f32 and bf16, -1 as an integer
static const unsigned char kGuardByte = 0xA7;

Block::Block() {}
Block::~Block() {
    if (stacks_) munmap(stacks_, stack_count_ * kStack);
    free(dynamic_);
}

// ---- shared memory ----------------------------------------------------------------------------------------------
// `__shared__` variables are the thread-local data of the kernel's library: this thread's copy, and where it lies.
struct StaticShared {
    const void* function;
    char *begin, *end;
};
static int find_static(dl_phdr_info* info, size_t, void* data) {
    auto* found = static_cast<StaticShared*>(data);
    bool contains = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& segment = info->dlpi_phdr[i];
        auto address = reinterpret_cast<uintptr_t>(found->function);
        auto start = info->dlpi_addr + segment.p_vaddr;
        if (segment.p_type == PT_LOAD && address >= start && address < start + segment.p_memsz) contains = true;
        if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
    }
    if (!contains) return 0;
    found->begin = static_cast<char*>(info->dlpi_tls_data);
    found->end = found->begin ? found->begin + bytes : nullptr;
    return 1;
}

// By a loop that no sanitizer intercepts: poisoning is not an access of the kernel.
__attribute__((no_sanitize("thread", "address"))) static void fill(char* begin, char* end, unsigned char value) {
    for (volatile char* p = begin; p < end; p++) *p = static_cast<char>(value);
}

void Block::poison_shared() {
    if (has_asan() || has_tsan()) {
        fill(dynamic_, dynamic_ + launch_->dynamic_shared, kPoison);
        return;
    }
    if (static_begin_) memset(static_begin_, kPoison, static_cast<size_t>(static_end_ - static_begin_));
    if (dynamic_) {
        memset(dynamic_, kPoison, launch_->dynamic_shared);
        memset(dynamic_ + launch_->dynamic_shared, kGuardByte, kGuard);
    }
}

void Block::check_guard() {
    if (!dynamic_ || has_asan() || has_tsan()) return;
    for (size_t i = 0; i < kGuard; i++)
        if (static_cast<unsigned char>(dynamic_[launch_->dynamic_shared + i]) != kGuardByte) {
            report("wrote past the end of its " + std::to_string(launch_->dynamic_shared) +
                       " bytes of dynamic shared memory (at +" + std::to_string(i) + ")",
                   {nullptr, 0, nullptr});
            return;
        }
}

bool Block::is_shared(const void* address) const {
    if (has_asan() || has_tsan()) return true;
    auto* p = static_cast<const char*>(address);
    return (p >= static_begin_ && p < static_end_) || (p >= dynamic_ && p < dynamic_ + launch_->dynamic_shared);
}

// ---- a block's life -----------------------------------------------------------------------------------------------
static void fiber_entry() { block_of_worker->fiber_body(); }

void Block::begin(const Launch& launch, dim3 index) {
    launch_ = &launch;
    threads_ = launch.block.x * launch.block.y * launch.block.z;
    if (stack_count_ < threads_) {
        if (stacks_) munmap(stacks_, stack_count_ * kStack);
        stack_count_ = threads_;
        stacks_ = static_cast<char*>(mmap(nullptr, stack_count_ * kStack, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    // Under ASan the allocation is exact, so that its red zone begins where the kernel's memory ends.
    if (launch.dynamic_shared > dynamic_capacity_ || (has_asan() && launch.dynamic_shared != dynamic_capacity_)) {
        free(dynamic_);
        dynamic_capacity_ = launch.dynamic_shared;
        size_t bytes = dynamic_capacity_ + (has_asan() ? 0 : kGuard);
        void* memory = nullptr;
        if (posix_memalign(&memory, 128, bytes)) fatal("out of host memory for shared memory");
        dynamic_ = static_cast<char*>(memory);
    }
    if (!has_asan() && !has_tsan() && launch.kernel != static_of_) {
        launch.kernel->touch();
        StaticShared found{launch.kernel->function, nullptr, nullptr};
        dl_iterate_phdr(find_static, &found);
        static_begin_ = found.begin;
        static_end_ = found.end;
        static_of_ = launch.kernel;
    }
    if (fibers_.size() < threads_) {
        fibers_.resize(threads_);
        copies_.resize(threads_);
    }
    warps_.resize((threads_ + 31) / 32);
    for (Warp& w : warps_) w.exist = w.done = w.ready = w.in_warp = w.in_barrier = 0;
    warp_ = order_.kind == Order::Reverse ? warps_.size() - 1 : 0;
    random_ = order_.seed * 1000003 + index.x + index.y * 7919 + index.z * 104729 + 88172645463325252u;
    context.block = {index.x, index.y, index.z};
    context.block_dim = launch.block;
    context.grid_dim = launch.grid;
    context.dynamic_shared = dynamic_;
    alive_ = threads_;
    waiting_ = votes_ = 0;
    failed_ = false;
    serial_ = (serial_ + 1) % 64;
}

bool Block::run(const Launch& launch, const Order& order, dim3 index) {
    block_of_worker = this;
    softgpu::context = &context;
    order_ = order;
    begin(launch, index);
    poison_shared();
    if (has_tsan()) {
        home_tsan_ = __tsan_get_current_fiber();
        __tsan_release(sync(kStart));
    }
    for (unsigned i = 0; i < threads_; i++) {
        Fiber& f = fibers_[i];
        f.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
        f.lane = i % 32;
        f.warp = i / 32;
        copies_[i].pending.clear();
        copies_[i].group = 0;
        copies_[i].delivered = 0;
        warps_[f.warp].exist |= 1u << f.lane;
        prepare(f.registers, stacks_ + i * kStack, kStack, fiber_entry);
    }
    // Made once, as each costs as much as a small block. To ThreadSanitizer, a fiber that has returned is a thread
    // that continues; start and end of a block order it with all others.
    if (has_tsan())
        while (tsan_.size() < threads_) tsan_.push_back(__tsan_create_fiber(0));
    for (Warp& w : warps_) w.ready = w.exist;
    current_ = nullptr;
    next(false);
    if (!failed_ && alive_) report_deadlock();
    check_guard();
    if (has_tsan()) {
        __tsan_acquire(sync(kEnd));
        if (failed_) {  // fibers that were abandoned have not left their functions
            for (void* fiber : tsan_) __tsan_destroy_fiber(fiber);
            tsan_.clear();
        }
    }
    return !failed_;
}

void Block::fiber_body() {
    fiber_started();
    if (has_tsan()) __tsan_acquire(sync(kStart));
    launch_->kernel->thunk(launch_->kernel->function, launch_->values);
    if (has_tsan()) __tsan_release(sync(kEnd));
    Warp& warp = warps_[current_->warp];
    warp.done |= 1u << current_->lane;
    for (unsigned left = warp.in_warp; left; left &= left - 1) {
        const Fiber& other = fibers_[current_->warp * 32 + static_cast<unsigned>(__builtin_ctz(left))];
        if (warp.mask[other.lane] >> current_->lane & 1)
            fault(std::string(other.site.what) + ": the mask names lanes that have returned", other.site);
    }
    alive_--;
    if (alive_ && waiting_ == alive_) complete_barrier();
    next(true);
    abort();
}

// One of the lanes that can run, chosen by the order.
unsigned Block::pick(unsigned lanes) {
    if (order_.kind == Order::Forward) return static_cast<unsigned>(__builtin_ctz(lanes));
    if (order_.kind == Order::Reverse) return 31 - static_cast<unsigned>(__builtin_clz(lanes));
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    for (unsigned skip = static_cast<unsigned>(random_ >> 33) % static_cast<unsigned>(__builtin_popcount(lanes)); skip; skip--)
        lanes &= lanes - 1;
    return static_cast<unsigned>(__builtin_ctz(lanes));
}

// The next fiber that can run; null when there is none.
Block::Fiber* Block::choose() {
    if (failed_) return nullptr;
    size_t count = warps_.size();
    if (!warps_[warp_].ready) {
        if (order_.kind == Order::Random) warp_ = (random_ >> 40) % count;
        size_t step = order_.kind == Order::Reverse ? count - 1 : 1, tried = 0;
        for (; tried < count && !warps_[warp_].ready; tried++) warp_ = (warp_ + step) % count;
        if (tried == count) return nullptr;
    }
    unsigned lane = pick(warps_[warp_].ready);
    warps_[warp_].ready &= ~(1u << lane);
    return &fibers_[warp_ * 32 + lane];
}

// Hands the processor to the next fiber that can run, or back to run() when there is none.
void Block::next(bool last) {
    Fiber* from = current_;
    Fiber* to = choose();
    if (to == from && to) return;
    switch_to(from ? from->registers : home_, to, last);
}

void Block::switch_to(Registers& from, Fiber* to, bool last) {
    Registers& target = to ? to->registers : home_;
    if (to) {
        current_ = to;
        context.thread = to->thread;
        context.lane = to->lane;
        context.warp = to->warp;
    }
    if (!has_tsan() && !has_asan()) return jump(from, target);
    Destination destination{home_tsan_, nullptr, 0};
    if (to) destination = {has_tsan() ? tsan_[index(to)] : nullptr, stacks_ + index(to) * kStack, kStack};
    switch_watched(from, target, destination, last);
}

void Block::leave() {
    switch_to(current_->registers, nullptr, true);
    abort();
}

// Field by field: a whole Site passed by value would be read wider than it was written, which stalls the processor.
inline void Block::place(Fiber& fiber, const char* what, const char* file, int line) {
    fiber.site.file = file;
    fiber.site.line = line;
    fiber.site.what = what;
}

// ---- barriers -----------------------------------------------------------------------------------------------------
int Block::barrier(int predicate, const char* file, int line, int kind) {
    Fiber* me = current_;
    place(*me, "__syncthreads", file, line);
    if (waiting_ == 0) barrier_site_ = me->site;
    else if (line != barrier_site_.line || file != barrier_site_.file)
        fault(std::string("divergent __syncthreads: other threads wait at ") + barrier_site_.file + ":" + std::to_string(barrier_site_.line), me->site);
    warps_[me->warp].in_barrier |= 1u << me->lane;
    votes_ += static_cast<unsigned>(predicate);
    char* order = sync(kBarrier);
    if (has_tsan()) __tsan_release(order);
    if (++waiting_ == alive_) complete_barrier();
    next(false);
    if (has_tsan()) __tsan_acquire(order);
    return results_[kind];
}

void Block::complete_barrier() {
    for (Warp& w : warps_) {
        w.ready |= w.in_barrier;
        w.in_barrier = 0;
    }
    results_[1] = static_cast<int>(votes_);
    results_[2] = votes_ == alive_;
    results_[3] = votes_ > 0;
    votes_ = waiting_ = 0;
}

unsigned Block::active_mask() const {
    const Warp& warp = warps_[current_->warp];
    return warp.exist & ~warp.done;
}

void Block::collective(unsigned mask, Complete complete, void* payload, const char* what, const char* file, int line, bool orders_memory) {
    Fiber* me = current_;
    place(*me, what, file, line);
    Warp& warp = warps_[me->warp];
    unsigned bit = 1u << me->lane;
    if (!(mask & bit)) fault(std::string(what) + ": the calling lane is not in its own mask", me->site);
    if (mask & ~warp.exist) fault(std::string(what) + ": the mask names lanes that the block does not have", me->site);
    if (mask & warp.done) fault(std::string(what) + ": the mask names lanes that have returned", me->site);
    warp.mask[me->lane] = mask;
    warp.payload[me->lane] = payload;
    warp.complete[me->lane] = complete;
    warp.in_warp |= bit;
    bool order = has_tsan() && orders_memory;
    char* object = sync(me->warp);
    if (order) __tsan_release(object);
    if ((warp.in_warp & mask) == mask) complete_warp(warp, mask);
    next(false);
    if (order) __tsan_acquire(object);
}

void Block::complete_warp(Warp& warp, unsigned mask) {
    const Fiber* lanes = &fibers_[current_->warp * 32];
    Complete complete = warp.complete[current_->lane];
    for (unsigned left = mask; left; left &= left - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(left));
        if (warp.mask[lane] != mask) fault("lanes of one warp operation pass different masks", lanes[lane].site);
        if (warp.complete[lane] != complete)
            fault("lanes of one warp operation execute different operations: lane " + std::to_string(lane) + " a " + lanes[lane].site.what,
                  current_->site);
    }
    complete(mask, warp.payload);
    warp.in_warp &= ~mask;
    warp.ready |= mask;
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------
void Block::copy_issue(void* to, const void* from, bool valid) {
    Copies& mine = copies_[index(current_)];
    mine.pending.push_back({to, from, valid, mine.group});
}
void Block::copy_commit() { copies_[index(current_)].group++; }
bool Block::copy_next(unsigned pending, Copy* copy) {
    Copies& mine = copies_[index(current_)];
    if (mine.delivered == mine.pending.size()) {
        mine.pending.clear();
        mine.delivered = 0;
        return false;
    }
    const Copy& candidate = mine.pending[mine.delivered];
    // cp.async.wait_group covers committed groups only, all but the last `pending` of them.
    if (candidate.group + pending >= mine.group) return false;
    *copy = candidate;
    mine.delivered++;
    return true;
}

// ---- reports --------------------------------------------------------------------------------------------------------
static std::string position(dim3 p) {
    return "(" + std::to_string(p.x) + "," + std::to_string(p.y) + "," + std::to_string(p.z) + ")";
}

void Block::report(const std::string& text, Site site) {
    failed_ = true;
    std::string place = std::string("kernel ") + launch_->kernel->name + " block " +
                        position({context.block.x, context.block.y, context.block.z});
    if (current_) place += " thread " + position({current_->thread.x, current_->thread.y, current_->thread.z});
    if (site.file) place += " at " + std::string(site.file) + ":" + std::to_string(site.line);
    complain(place + ": " + text);
}

void Block::fault(const std::string& text, Site site) {
    report(text, site);
    leave();
    abort();
}

void Block::report_deadlock() {
    std::string text = "deadlock: " + std::to_string(alive_) + " threads wait for ever";
    int shown = 0;
    Site place{nullptr, 0, nullptr};
    const Fiber* previous = nullptr;
    for (unsigned i = 0; i < threads_ && shown < 4; i++) {
        const Fiber& f = fibers_[i];
        const Warp& w = warps_[f.warp];
        if (!((w.in_warp | w.in_barrier) >> f.lane & 1)) continue;
        if (previous && previous->site.line == f.site.line && previous->site.file == f.site.file) continue;
        text += std::string(shown++ ? "; thread " : ": thread ") + position({f.thread.x, f.thread.y, f.thread.z}) + " in " +
                f.site.what + " at " + f.site.file + ":" + std::to_string(f.site.line);
        previous = &f;
    }
    current_ = nullptr;
    report(text, place);
}

// ---- the calls of kernels -----------------------------------------------------------------------------------------
int barrier(int predicate, const char* file, int line, int kind) {
    return block_of_worker->barrier(predicate, file, line, kind);
}
void collective(unsigned mask, Complete complete, void* payload, const char* what, const char* file, int line,
                bool orders_memory) {
    block_of_worker->collective(mask, complete, payload, what, file, line, orders_memory);
}
unsigned active_mask() { return block_of_worker->active_mask(); }
void copy_issue(void* to, const void* from, bool valid) { block_of_worker->copy_issue(to, from, valid); }
void copy_commit() { block_of_worker->copy_commit(); }
bool copy_next(unsigned pending, Copy* copy) { return block_of_worker->copy_next(pending, copy); }
bool is_shared(const void* address) { return block_of_worker->is_shared(address); }
void fault(const char* text, const char* file, int line) { block_of_worker->fault(text, {file, line, nullptr}); }
}  // namespace softgpu
