// Runs a grid: blocks are dealt to a few worker threads, one at a time in sanitizer builds.
#include "block.h"
#include "report.h"
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace softgpu {
static uint64_t scramble(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static Order read_order() {
    std::string text = setting("SOFTGPU_ORDER", "forward");
    Order order;
    if (text == "reverse") order.kind = Order::Reverse;
    else if (text.rfind("random", 0) == 0) order.kind = Order::Random;
    else if (text != "forward" && text != "compare") fatal("SOFTGPU_ORDER=" + text + ": forward, reverse, random:SEED or compare");
    if (text.size() > 7) order.seed = strtoull(text.c_str() + 7, nullptr, 10);
    return order;
}
const Order& chosen_order() {
    static const Order order = read_order();
    return order;
}

// SOFTGPU_BLOCKS: the most blocks of a grid to run, for sanitizers, which watch one block at a time anyway.
static uint64_t block_limit() {
    static const uint64_t limit = static_cast<uint64_t>(setting("SOFTGPU_BLOCKS", 0l));
    return limit;
}

// The workers beside the calling thread. One grid at a time uses them; a grid that finds them busy runs without.
class Workers {
public:
    static Workers& get() {
        static Workers* workers = new Workers;  // never destroyed: threads may still hold blocks at exit
        return *workers;
    }
    void run(const std::function<void()>& work, uint64_t blocks) {
        std::unique_lock<std::mutex> mine(turn_, std::try_to_lock);
        if (!mine || !count_ || blocks < 2) return work();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            pending_ = count_;
            generation_++;
        }
        wake_.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return pending_ == 0; });
        work_ = nullptr;
    }

private:
    Workers() {
        long ranks = setting("OMPI_COMM_WORLD_LOCAL_SIZE", 1);
        long cores = static_cast<long>(std::thread::hardware_concurrency());
        long threads = setting("SOFTGPU_THREADS", std::max(1L, std::min(8L, cores / std::max(1L, ranks))));
        if (has_asan() || has_tsan()) threads = 1;
        count_ = static_cast<unsigned>(std::max(1L, threads)) - 1;
        for (unsigned i = 0; i < count_; i++) std::thread([this] { loop(); }).detach();
    }
    void loop() {
        uint64_t seen = 0;
        for (;;) {
            const std::function<void()>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_ != seen; });
                seen = generation_;
                work = work_;
            }
            (*work)();
            std::lock_guard<std::mutex> lock(mutex_);
            if (--pending_ == 0) done_.notify_one();
        }
    }
    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    const std::function<void()>* work_ = nullptr;
    uint64_t generation_ = 0;
    unsigned count_ = 0, pending_ = 0;
};

static Block& block_of_thread() {
    static thread_local std::unique_ptr<Block> block;
    if (!block) block.reset(new Block);
    return *block;
}

void parallel(size_t count, const std::function<void(size_t)>& body) {
    std::atomic<size_t> taken{0};
    Workers::get().run([&] { for (size_t i; (i = taken.fetch_add(1)) < count;) body(i); }, count);
}

bool run_grid(const Launch& launch, const Order& order) {
    dim3 g = launch.grid;
    const uint64_t all = static_cast<uint64_t>(g.x) * g.y * g.z, most = block_limit();
    const uint64_t blocks = most && most < all ? most : all;
    std::vector<uint64_t> shuffled;
    if (order.kind == Order::Random) {
        shuffled.resize(blocks);
        for (uint64_t i = 0; i < blocks; i++) shuffled[i] = i;
        uint64_t state = scramble(order.seed + 77);
        for (uint64_t i = blocks - 1; i > 0; i--) std::swap(shuffled[i], shuffled[(state = scramble(state + i)) % (i + 1)]);
    }
    std::atomic<uint64_t> taken{0};
    std::atomic<bool> good{true};
    std::function<void()> work = [&] {
        Block& block = block_of_thread();
        for (;;) {
            uint64_t k = taken.fetch_add(1);
            if (k >= blocks || !good.load(std::memory_order_relaxed)) return;
            if (!shuffled.empty()) k = shuffled[k];
            else if (order.kind == Order::Reverse) k = blocks - 1 - k;
            if (blocks < all && blocks > 1) k = k * (all - 1) / (blocks - 1);  // the first, the last, even steps
            dim3 index(static_cast<unsigned>(k % g.x), static_cast<unsigned>(k / g.x % g.y), static_cast<unsigned>(k / g.x / g.y));
            if (!block.run(launch, order, index)) good = false;
        }
    };
    Workers::get().run(work, blocks);
    return good;
}
}  // namespace softgpu
