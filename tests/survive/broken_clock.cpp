// A clock that fails the main thread once training has begun: the Rust standard library panics there, which nothing else
// in reach makes it do. Preloaded into one rank (trouble.rs).
#include <cerrno>
#include <ctime>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" int clock_gettime(clockid_t clock, timespec* to) noexcept {
    if (clock == CLOCK_MONOTONIC && gettid() == getpid() && access("run/metrics.jsonl", F_OK) == 0) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_clock_gettime, clock, to);
}
