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

// A stack is a multiple of a page plus five cache lines: with a plain power of two the hot lines of all stacks fall into
// one set of the cache.
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
    if (fibers_.size() < threads_) fibers_.resize(threads_);
    warps_.resize((threads_ + 31) / 32);
    memset(warps_.data(), 0, warps_.size() * sizeof(Warp));
    size_t ring = 1;
    while (ring <= threads_) ring *= 2;
    queue_.resize(ring);
    head_ = tail_ = 0;
    context.block = {index.x, index.y, index.z};
    context.block_dim = launch.block;
    context.grid_dim = launch.grid;
    context.dynamic_shared = dynamic_;
    alive_ = threads_;
    waiting_ = votes_ = 0;
    failed_ = false;
    serial_ = (serial_ + 1) % 64;
}

bool Block::run(const Launch& launch, dim3 index) {
    block_of_worker = this;
    softgpu::context = &context;
    begin(launch, index);
    poison_shared();
    char* order_of_blocks = sync_[serial_] + 33;
    if (has_tsan()) {
        home_.tsan = __tsan_get_current_fiber();
        __tsan_release(order_of_blocks);
    }
    for (unsigned i = 0; i < threads_; i++) {
        Fiber& f = fibers_[i];
        f.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
        f.lane = i % 32;
        f.warp = i / 32;
        f.group = f.delivered = 0;
        f.copies.clear();
        warps_[f.warp].exist |= 1u << f.lane;
        prepare(f.state_of_cpu, stacks_ + i * kStack, kStack, fiber_entry);
        f.state_of_cpu.tsan = has_tsan() ? __tsan_create_fiber(0) : nullptr;
    }
    static thread_local std::vector<unsigned> order;
    order.resize(threads_);
    order_threads(order, index.x + index.y * 7919 + index.z * 104729);
    for (unsigned i : order) push(i);
    current_ = nullptr;
    next(false);
    if (!failed_ && alive_) report_deadlock();
    check_guard();
    if (has_tsan()) {
        for (unsigned i = 0; i < threads_; i++) __tsan_destroy_fiber(fibers_[i].state_of_cpu.tsan);
        __tsan_acquire(order_of_blocks);
    }
    return !failed_;
}

void Block::fiber_body() {
    fiber_started();
    char* order_of_blocks = sync_[serial_] + 33;
    if (has_tsan()) __tsan_acquire(order_of_blocks);
    launch_->kernel->thunk(launch_->kernel->function, launch_->values);
    if (has_tsan()) __tsan_release(order_of_blocks);
    Warp& warp = warps_[current_->warp];
    warp.done |= 1u << current_->lane;
    current_->state = Done;
    alive_--;
    if (alive_ && waiting_ == alive_) complete_barrier();
    next(true);
    abort();
}

void Block::push(unsigned fiber) {
    queue_[tail_++ & (queue_.size() - 1)] = fiber;
    fibers_[fiber].state = Ready;
}

// Hands the processor to the next fiber that can run, or back to run() when there is none.
void Block::next(bool last) {
    Fiber* from = current_;
    FiberState* target = &home_;
    if (head_ != tail_ && !failed_) {
        Fiber& to = fibers_[queue_[head_++ & (queue_.size() - 1)]];
        to.state = Running;
        current_ = &to;
        context.thread = to.thread;
        context.lane = to.lane;
        context.warp = to.warp;
        if (&to == from) return;
        target = &to.state_of_cpu;
    }
    switch_fiber(from ? from->state_of_cpu : home_, *target, last);
}

void Block::leave() {
    switch_fiber(current_->state_of_cpu, home_, true);
    abort();
}

// ---- barriers -----------------------------------------------------------------------------------------------------
int Block::barrier(int predicate, Site site, int kind) {
    Fiber* me = current_;
    char* order = sync_[serial_] + 32;
    site.what = "__syncthreads";
    me->site = site;
    me->state = InBarrier;
    votes_ += static_cast<unsigned>(predicate);
    if (has_tsan()) __tsan_release(order);
    if (++waiting_ == alive_) complete_barrier();
    next(false);
    if (has_tsan()) __tsan_acquire(order);
    return results_[kind];
}

void Block::complete_barrier() {
    const Fiber* first = nullptr;
    for (unsigned i = 0; i < threads_; i++) {
        Fiber& f = fibers_[i];
        if (f.state != InBarrier) continue;
        if (!first) first = &f;
        if (f.site.line != first->site.line || f.site.file != first->site.file) {
            current_ = &f;
            context.thread = f.thread;
            fault("divergent __syncthreads: thread (" + std::to_string(first->thread.x) + "," +
                      std::to_string(first->thread.y) + "," + std::to_string(first->thread.z) + ") waits at " +
                      first->site.file + ":" + std::to_string(first->site.line),
                  f.site);
        }
        push(i);
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

void Block::collective(unsigned mask, Complete complete, void* payload, Site site, bool orders_memory) {
    Fiber* me = current_;
    Warp& warp = warps_[me->warp];
    unsigned bit = 1u << me->lane;
    if (!(mask & bit)) fault(std::string(site.what) + ": the calling lane is not in its own mask", site);
    if (mask & ~warp.exist) fault(std::string(site.what) + ": the mask names lanes that the block does not have", site);
    if (mask & warp.done) fault(std::string(site.what) + ": the mask names lanes that have returned", site);
    warp.mask[me->lane] = mask;
    warp.payload[me->lane] = payload;
    warp.complete[me->lane] = complete;
    warp.arrived |= bit;
    me->site = site;
    me->state = InWarp;
    bool order = has_tsan() && orders_memory;
    char* object = sync_[serial_] + me->warp;
    if (order) __tsan_release(object);
    if ((warp.arrived & mask) == mask) complete_warp(warp, mask, me->warp * 32);
    next(false);
    if (order) __tsan_acquire(object);
}

void Block::complete_warp(Warp& warp, unsigned mask, unsigned base) {
    for (unsigned left = mask; left; left &= left - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(left));
        if (warp.mask[lane] != mask) fault("lanes of one warp operation pass different masks", fibers_[base + lane].site);
        if (warp.complete[lane] != warp.complete[current_->lane])
            fault("lanes of one warp operation execute different operations: lane " + std::to_string(lane) + " a " +
                      fibers_[base + lane].site.what,
                  current_->site);
    }
    warp.complete[current_->lane](mask, warp.payload);
    warp.arrived &= ~mask;
    for (unsigned left = mask; left; left &= left - 1) push(base + static_cast<unsigned>(__builtin_ctz(left)));
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------
void Block::copy_issue(void* to, const void* from, bool valid) {
    current_->copies.push_back({to, from, valid, current_->group});
}
void Block::copy_commit() { current_->group++; }
bool Block::copy_next(unsigned pending, Copy* copy) {
    Fiber& f = *current_;
    if (f.delivered == f.copies.size()) {
        f.copies.clear();
        f.delivered = 0;
        return false;
    }
    const Copy& candidate = f.copies[f.delivered];
    // cp.async.wait_group covers committed groups only, all but the last `pending` of them.
    if (candidate.group + pending >= f.group) return false;
    *copy = candidate;
    f.delivered++;
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
        if (f.state != InWarp && f.state != InBarrier) continue;
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
    return block_of_worker->barrier(predicate, {file, line, nullptr}, kind);
}
void collective(unsigned mask, Complete complete, void* payload, const char* what, const char* file, int line,
                bool orders_memory) {
    block_of_worker->collective(mask, complete, payload, {file, line, what}, orders_memory);
}
unsigned active_mask() { return block_of_worker->active_mask(); }
void copy_issue(void* to, const void* from, bool valid) { block_of_worker->copy_issue(to, from, valid); }
void copy_commit() { block_of_worker->copy_commit(); }
bool copy_next(unsigned pending, Copy* copy) { return block_of_worker->copy_next(pending, copy); }
bool is_shared(const void* address) { return block_of_worker->is_shared(address); }
void fault(const char* text, const char* file, int line) { block_of_worker->fault(text, {file, line, nullptr}); }
}  // namespace softgpu
