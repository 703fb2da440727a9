// Shuffles, votes, reductions and __syncwarp. Each lane leaves its value on its own stack; the last lane to arrive
// computes all results. That exchange is not a data race, so it is hidden from ThreadSanitizer; the lanes' memory
// accesses around it are not.
#pragma once
#define SOFTGPU_EXCHANGE __attribute__((no_sanitize("thread"), noinline))

namespace softgpu {
template <class T> struct Exchange {
    T value;
    int source;
    bool absent;  // the source lane did not take part: undefined on a card
};
template <class T> SOFTGPU_EXCHANGE void exchange(unsigned mask, void** payloads) {
    T results[32];
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        auto* mine = static_cast<Exchange<T>*>(payloads[lane]);
        mine->absent = !(mask >> mine->source & 1);
        results[lane] = static_cast<Exchange<T>*>(payloads[mine->absent ? lane : mine->source])->value;
    }
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) static_cast<Exchange<T>*>(payloads[lane])->value = results[lane];
}
template <class T> SOFTGPU_EXCHANGE T shuffle(unsigned mask, T value, int source, const char* file, int line) {
    Exchange<T> mine = {value, source, false};
    collective(mask, exchange<T>, &mine, "shuffle", file, line, false);
    if (mine.absent) fault("a shuffle reads from a lane that is not in its mask", file, line);
    return mine.value;
}
// Lanes outside a segment of `width` keep their own value, as the manual says.
template <class T> T shuffle_index(unsigned mask, T value, int source, const char* file, int line, int width = 32) {
    int lane = (int)context->lane;
    return shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <class T> T shuffle_up(unsigned mask, T value, unsigned by, const char* file, int line, int width = 32) {
    int lane = (int)context->lane, source = lane - (int)by;
    return shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, file, line);
}
template <class T> T shuffle_down(unsigned mask, T value, unsigned by, const char* file, int line, int width = 32) {
    int lane = (int)context->lane, source = lane + (int)by;
    return shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}
template <class T> T shuffle_xor(unsigned mask, T value, int with, const char* file, int line, int width = 32) {
    int lane = (int)context->lane, source = lane ^ with;
    return shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}

SOFTGPU_EXCHANGE inline void vote(unsigned mask, void** payloads) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && *static_cast<unsigned*>(payloads[lane])) votes |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) *static_cast<unsigned*>(payloads[lane]) = votes;
}
SOFTGPU_EXCHANGE inline unsigned ballot(unsigned mask, bool predicate, const char* file, int line) {
    unsigned mine = predicate;
    collective(mask, vote, &mine, "vote", file, line, false);
    return mine;
}

struct Add { template <class T> static T of(T a, T b) { return a + b; } };
struct Min { template <class T> static T of(T a, T b) { return b < a ? b : a; } };
struct Max { template <class T> static T of(T a, T b) { return a < b ? b : a; } };
struct And { template <class T> static T of(T a, T b) { return a & b; } };
struct Or { template <class T> static T of(T a, T b) { return a | b; } };
struct Xor { template <class T> static T of(T a, T b) { return a ^ b; } };
template <class Op, class T> SOFTGPU_EXCHANGE void fold(unsigned mask, void** payloads) {
    T all = *static_cast<T*>(payloads[__builtin_ctz(mask)]);
    for (int lane = __builtin_ctz(mask) + 1; lane < 32; lane++)
        if (mask >> lane & 1) all = Op::of(all, *static_cast<T*>(payloads[lane]));
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) *static_cast<T*>(payloads[lane]) = all;
}
template <class Op, class T> SOFTGPU_EXCHANGE T reduce(unsigned mask, T value, const char* file, int line) {
    static_assert(IsInteger<T>::value, "__reduce_*_sync takes 32-bit integers");
    collective(mask, fold<Op, T>, &value, "reduction", file, line, false);
    return value;
}

inline void nothing(unsigned, void**) {}
inline void sync_warp(const char* file, int line, unsigned mask = 0xffffffffu) {
    collective(mask, nothing, nullptr, "__syncwarp", file, line, true);
}
}  // namespace softgpu

// The place of the call goes before the optional last argument.
#define SOFTGPU_PICK(_1, _2, _3, _4, name, ...) name
#define SOFTGPU_WITH_WIDTH(f, m, v, s, w) ::softgpu::f(m, v, s, __FILE__, __LINE__, w)
#define SOFTGPU_FULL_WIDTH(f, m, v, s) ::softgpu::f(m, v, s, __FILE__, __LINE__)
#define SOFTGPU_SHUFFLE(f, ...) SOFTGPU_PICK(__VA_ARGS__, SOFTGPU_WITH_WIDTH, SOFTGPU_FULL_WIDTH)(f, __VA_ARGS__)
#define __shfl_sync(...) SOFTGPU_SHUFFLE(shuffle_index, __VA_ARGS__)
#define __shfl_up_sync(...) SOFTGPU_SHUFFLE(shuffle_up, __VA_ARGS__)
#define __shfl_down_sync(...) SOFTGPU_SHUFFLE(shuffle_down, __VA_ARGS__)
#define __shfl_xor_sync(...) SOFTGPU_SHUFFLE(shuffle_xor, __VA_ARGS__)
#define __ballot_sync(m, p) ::softgpu::ballot(m, p, __FILE__, __LINE__)
#define __any_sync(m, p) (::softgpu::ballot(m, p, __FILE__, __LINE__) != 0)
#define __all_sync(m, p) (::softgpu::ballot(m, !(p), __FILE__, __LINE__) == 0)
#define __reduce_add_sync(m, v) ::softgpu::reduce<::softgpu::Add>(m, v, __FILE__, __LINE__)
#define __reduce_min_sync(m, v) ::softgpu::reduce<::softgpu::Min>(m, v, __FILE__, __LINE__)
#define __reduce_max_sync(m, v) ::softgpu::reduce<::softgpu::Max>(m, v, __FILE__, __LINE__)
#define __reduce_and_sync(m, v) ::softgpu::reduce<::softgpu::And>(m, v, __FILE__, __LINE__)
#define __reduce_or_sync(m, v) ::softgpu::reduce<::softgpu::Or>(m, v, __FILE__, __LINE__)
#define __reduce_xor_sync(m, v) ::softgpu::reduce<::softgpu::Xor>(m, v, __FILE__, __LINE__)
#define __syncwarp(...) ::softgpu::sync_warp(__FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __activemask() ::softgpu::active_mask()
