// Streams as queues, run in any order that CUDA permits. SOFTGPU_STREAMS chooses:
//   eager        each operation runs when it is issued, the order in which hosts usually see them;
//   lazy         nothing runs until the host waits; then the waited-for stream runs as far as it can, and others only as
//                far as its events need: the latest that a card could be;
//   late:ID      stream ID (in the order of their creation, from 1) runs as far as others or the host need it and the
//                others as soon as they can: what one stream forgets to wait for of another shows for certain;
//   random:SEED  any permitted order, drawn from the seed;
//   threads:SEED a host thread a stream, with random delays.
// A missing wait shows under lazy or under some seeds, not under all.
#include "device.h"
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

namespace softgpu {
enum class Mode { Eager, Lazy, Late, Random, Threads };
struct Scheduler {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Stream*> streams;
    Stream* standard;
    Mode mode = Mode::Eager;
    uint64_t random = 88172645463325252u;
    CUresult error = CUDA_SUCCESS;
    int created = 0;
    int late = 0;                        // the stream of Mode::Late
    HostWaits host_waits{0, 0};

    Scheduler() {
        std::string text = setting("SOFTGPU_STREAMS", "eager");
        if (text == "lazy") mode = Mode::Lazy;
        else if (text.rfind("late", 0) == 0) mode = Mode::Late;
        else if (text.rfind("random", 0) == 0) mode = Mode::Random;
        else if (text.rfind("threads", 0) == 0) mode = Mode::Threads;
        else if (text != "eager") fatal("SOFTGPU_STREAMS=" + text + ": eager, lazy, late:ID, random:SEED or threads:SEED");
        size_t colon = text.find(':');
        if (mode == Mode::Late && colon != std::string::npos) late = atoi(text.c_str() + colon + 1);
        else if (colon != std::string::npos) random ^= 0x9E3779B97F4A7C15u * (1 + strtoull(text.c_str() + colon + 1, nullptr, 10));
        standard = add();
    }
    uint64_t draw() {
        random ^= random << 13;
        random ^= random >> 7;
        return random ^= random << 17;
    }
    Stream* add();
};
static Scheduler& scheduler() {
    static Scheduler* instance = new Scheduler;  // stream threads may still look at it at exit
    return *instance;
}
typedef std::unique_lock<std::mutex> Lock;

static bool can_run(const Stream* s) {
    if (s->running || s->queue.empty()) return false;
    const Operation& o = s->queue.front();
    return !o.waits || o.event->done >= o.number;
}

// Carries out the first operation of a stream. The lock is released meanwhile, so that a collective that waits for
// other ranks holds nobody up.
static void step(Stream* s, Lock& lock) {
    Operation o = std::move(s->queue.front());
    s->queue.pop_front();
    s->running = true;
    CUresult result = CUDA_SUCCESS;
    if (o.run && scheduler().error == CUDA_SUCCESS) {
        lock.unlock();
        result = o.run();
        lock.lock();
    }
    if (o.event && !o.waits) {
        o.event->done = std::max(o.event->done, o.number);
        o.event->milliseconds =
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    if (result != CUDA_SUCCESS && scheduler().error == CUDA_SUCCESS) scheduler().error = result;
    s->running = false;
    scheduler().changed.notify_all();
}

static void stream_thread(Stream* s, uint64_t seed) {
    for (;;) {
        Lock lock(scheduler().mutex);
        scheduler().changed.wait(lock, [&] { return can_run(s) || !s->alive; });
        if (!s->alive && s->queue.empty()) return;
        if (!can_run(s)) continue;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        auto delay = std::chrono::microseconds(seed >> 33 & 3 ? 0 : seed >> 40 & 511);
        lock.unlock();
        std::this_thread::sleep_for(delay);
        lock.lock();
        if (can_run(s)) step(s, lock);
    }
}

Stream* Scheduler::add() {
    auto* s = new Stream;
    s->id = created++;
    streams.push_back(s);
    if (mode == Mode::Threads) std::thread(stream_thread, s, draw()).detach();
    return s;
}

// The stream whose queue holds the record that `blocked` waits for, or else any that can run.
static Stream* needed_by(Stream* blocked, const std::vector<Stream*>& able) {
    std::vector<Stream*> chain{blocked};
    for (size_t i = 0; i < chain.size(); i++) {
        if (chain[i]->queue.empty()) continue;
        const Operation& first = chain[i]->queue.front();
        if (!first.waits || first.event->done >= first.number) {
            if (!chain[i]->running) return chain[i];
            continue;
        }
        for (Stream* other : scheduler().streams)
            for (const Operation& o : other->queue)
                if (!o.waits && o.event == first.event) {
                    chain.push_back(other);
                    break;
                }
        if (chain.size() > 64) break;
    }
    return able.front();
}

// A stream that runs without being asked.
static Stream* hurried(const std::vector<Stream*>& streams) {
    for (Stream* s : streams)
        if (s->id != scheduler().late && can_run(s)) return s;
    return nullptr;
}

// Runs work until the condition holds.
static CUresult drain(const std::function<bool()>& holds, Stream* wanted, Lock& lock) {
    Scheduler& all = scheduler();
    while (!holds()) {
        std::vector<Stream*> able;
        bool busy = false;
        for (Stream* s : all.streams) {
            busy |= s->running;
            if (can_run(s)) able.push_back(s);
        }
        if (all.mode == Mode::Threads) {
            if (able.empty() && !busy) goto stuck;
            all.changed.wait_for(lock, std::chrono::milliseconds(50));
            continue;
        }
        if (able.empty() && busy) {
            all.changed.wait(lock);
            continue;
        }
        if (able.empty()) {
        stuck:
            lock.unlock();
            complain("deadlock: every stream waits for an event that nothing will record");
            lock.lock();
            return all.error = CUDA_ERROR_LAUNCH_FAILED;
        }
        Stream* chosen = able[all.draw() % able.size()];
        Stream* first = all.mode == Mode::Late ? hurried(able) : nullptr;
        if (first) chosen = first;
        else if (wanted && all.mode != Mode::Random) chosen = can_run(wanted) ? wanted : needed_by(wanted, able);
        step(chosen, lock);
    }
    return all.error;
}

// The same for a host that blocks meanwhile.
static CUresult host_waits_until(const std::function<bool()>& holds, Stream* wanted, Lock& lock) {
    if (holds()) return scheduler().error;
    CUresult result = drain(holds, wanted, lock);
    scheduler().host_waits.all++;
    bool idle = true;
    for (Stream* s : scheduler().streams) idle &= s->queue.empty() && !s->running;
    if (idle) scheduler().host_waits.idle++;
    return result;
}
HostWaits host_waits() {
    Lock lock(scheduler().mutex);
    return scheduler().host_waits;
}

static CUresult push(Stream* s, Operation o, Lock& lock) {
    Scheduler& all = scheduler();
    s->queue.push_back(std::move(o));
    all.changed.notify_all();
    if (all.mode == Mode::Eager) return drain([s] { return s->queue.empty() && !s->running; }, s, lock);
    while (all.mode == Mode::Late) {
        Stream* first = hurried(all.streams);
        if (!first) break;
        step(first, lock);
    }
    while (all.mode == Mode::Random && all.draw() % 3 == 0) {
        std::vector<Stream*> able;
        for (Stream* each : all.streams)
            if (can_run(each)) able.push_back(each);
        if (able.empty()) break;
        step(able[all.draw() % able.size()], lock);
    }
    return all.error;
}

Stream* resolve(void* handle) {
    auto value = reinterpret_cast<uintptr_t>(handle);
    return value <= 2 ? scheduler().standard : static_cast<Stream*>(handle);
}
Stream* create_stream() {
    Lock lock(scheduler().mutex);
    return scheduler().add();
}
CUresult destroy_stream(Stream* s) {
    Lock lock(scheduler().mutex);
    CUresult result = drain([s] { return s->queue.empty() && !s->running; }, s, lock);
    auto& streams = scheduler().streams;
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) streams.erase(streams.begin() + static_cast<long>(i));
    s->alive = false;  // kept: a thread may still look at it, and a handle used too late is found
    scheduler().changed.notify_all();
    return result;
}
static CUresult add_node(Stream* s, const char* what, Work run) {
    s->capture->nodes.push_back({what, std::move(run), s->frontier});
    s->frontier = {s->capture->nodes.size() - 1};
    return CUDA_SUCCESS;
}
static bool usable(const Stream* s) {
    if (s->alive) return true;
    complain("a stream is used after its destruction");
    return false;
}

// What has been put on streams since the last query, by name.
static std::map<std::string, int>& enqueued() {
    static std::map<std::string, int> counts;
    return counts;
}

// Writes a line `name count` for each name into `out`, terminated by a zero, and resets the counts. Returns the bytes
// needed.
SOFTGPU_API size_t softgpu_take_enqueued(char* out, size_t room) {
    Lock lock(scheduler().mutex);
    std::string text;
    for (const auto& [name, count] : enqueued()) text += name + " " + std::to_string(count) + "\n";
    if (text.size() < room) {
        memcpy(out, text.c_str(), text.size() + 1);
        enqueued().clear();
    }
    return text.size() + 1;
}

CUresult enqueue(Stream* s, const char* what, Work run) {
    if (!usable(s)) return CUDA_ERROR_INVALID_HANDLE;
    Lock lock(scheduler().mutex);
    enqueued()[what]++;
    if (s->capture) return add_node(s, what, std::move(run));
    return push(s, {what, std::move(run), nullptr}, lock);
}
CUresult record(Stream* s, const Event& event) {
    if (!usable(s)) return CUDA_ERROR_INVALID_HANDLE;
    Lock lock(scheduler().mutex);
    event->capture = s->capture;
    event->nodes = s->frontier;
    event->stream = s->id;
    if (s->capture) return CUDA_SUCCESS;
    return push(s, {"record", nullptr, event, ++event->recorded}, lock);
}
CUresult wait(Stream* s, const Event& event) {
    if (!usable(s)) return CUDA_ERROR_INVALID_HANDLE;
    Lock lock(scheduler().mutex);
    if (event->capture) {
        if (s->capture && s->capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        if (!s->capture) {
            s->capture = event->capture;
            s->capture->joined.push_back(s);
        }
        s->frontier.insert(s->frontier.end(), event->nodes.begin(), event->nodes.end());
        return CUDA_SUCCESS;
    }
    if (s->capture) {
        lock.unlock();
        complain("a stream under capture waits for an event that was recorded outside the capture");
        lock.lock();
        s->capture->broken = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    return push(s, {"wait", nullptr, event, event->recorded, true}, lock);
}
// Waiting for a stream under capture is an error on a card, and breaks the capture.
static bool breaks_capture(Stream* s) {
    if (!s->capture) return false;
    s->capture->broken = true;
    return true;
}
// Another thread's capture in the thread-local mode, which does not mind what this thread does.
static bool elsewhere(Stream* s) {
    return s->capture && s->capture->thread_local_mode && s->capture->thread != std::this_thread::get_id();
}
CUresult synchronize(Stream* s) {
    if (!usable(s)) return CUDA_ERROR_INVALID_HANDLE;
    Lock lock(scheduler().mutex);
    if (breaks_capture(s)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return host_waits_until([s] { return s->queue.empty() && !s->running; }, s, lock);
}
CUresult synchronize_all() {
    Lock lock(scheduler().mutex);
    for (Stream* s : scheduler().streams)
        if (!elsewhere(s) && breaks_capture(s)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return host_waits_until(
        [] {
            for (Stream* s : scheduler().streams)
                if (!s->queue.empty() || s->running) return false;
            return true;
        },
        nullptr, lock);
}
CUresult synchronize(const Event& event) {
    Lock lock(scheduler().mutex);
    if (event->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    uint64_t number = event->recorded;
    Stream* holder = nullptr;
    for (Stream* s : scheduler().streams)
        for (const Operation& o : s->queue)
            if (!o.waits && o.event == event) holder = s;
    return host_waits_until([&] { return event->done >= number; }, holder, lock);
}
// A query lets time pass: otherwise a host that polls would poll forever.
CUresult query(const Event& event) {
    Lock lock(scheduler().mutex);
    for (Stream* s : scheduler().streams)
        if (event->done < event->recorded && scheduler().mode != Mode::Threads && can_run(s)) {
            step(s, lock);
            break;
        }
    if (scheduler().error) return scheduler().error;
    return event->done >= event->recorded ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult query(Stream* s) {
    Lock lock(scheduler().mutex);
    if (scheduler().mode != Mode::Threads && can_run(s)) step(s, lock);
    if (scheduler().error) return scheduler().error;
    return s->queue.empty() && !s->running ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult first_error() {
    Lock lock(scheduler().mutex);
    return scheduler().error;
}

// ---- graphs -----------------------------------------------------------------------------------------------------
bool capturing(Stream* s) {
    Lock lock(scheduler().mutex);
    return s->capture != nullptr;
}
CUresult begin_capture(Stream* s, bool thread_local_mode) {
    Lock lock(scheduler().mutex);
    if (s->capture || s == scheduler().standard) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->joined = {s};
    s->capture->thread = std::this_thread::get_id();
    s->capture->thread_local_mode = thread_local_mode;
    s->frontier.clear();
    return CUDA_SUCCESS;
}
CUresult end_capture(Stream* s, std::shared_ptr<Capture>* out) {
    Lock lock(scheduler().mutex);
    if (!s->capture || s->capture->origin != s) return CUDA_ERROR_INVALID_VALUE;
    auto capture = s->capture;
    // Every node must lie before the origin's frontier, or a stream was left behind.
    std::vector<bool> reached(capture->nodes.size(), false);
    std::vector<size_t> open = s->frontier;
    while (!open.empty()) {
        size_t n = open.back();
        open.pop_back();
        if (reached[n]) continue;
        reached[n] = true;
        for (size_t before : capture->nodes[n].after) open.push_back(before);
    }
    for (Stream* each : capture->joined) {
        each->capture = nullptr;
        each->frontier.clear();
    }
    if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    for (size_t n = 0; n < reached.size(); n++)
        if (!reached[n]) {
            std::string what = capture->nodes[n].what;
            lock.unlock();
            complain("a capture ends while another stream's " + what + " is not joined to it by an event");
            return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        }
    *out = capture;
    return CUDA_SUCCESS;
}
// Nodes in the captured order, the latest first where lazy, or in any order that their edges permit.
CUresult run_graph(const Capture& graph) {
    size_t n = graph.nodes.size();
    std::vector<size_t> missing(n), ready;
    std::vector<std::vector<size_t>> next(n);
    for (size_t i = 0; i < n; i++) {
        missing[i] = graph.nodes[i].after.size();
        for (size_t before : graph.nodes[i].after) next[before].push_back(i);
        if (!missing[i]) ready.push_back(i);
    }
    Mode mode = scheduler().mode;
    while (!ready.empty()) {
        size_t pick = 0;
        if (mode == Mode::Random || mode == Mode::Threads) {
            Lock lock(scheduler().mutex);
            pick = scheduler().draw() % ready.size();
        } else {
            for (size_t i = 1; i < ready.size(); i++)
                if (mode == Mode::Lazy ? ready[i] > ready[pick] : ready[i] < ready[pick]) pick = i;
        }
        size_t node = ready[pick];
        ready.erase(ready.begin() + static_cast<long>(pick));
        CUresult result = graph.nodes[node].run ? graph.nodes[node].run() : CUDA_SUCCESS;
        if (result) return result;
        for (size_t after : next[node])
            if (--missing[after] == 0) ready.push_back(after);
    }
    return CUDA_SUCCESS;
}
}  // namespace softgpu
