// What every kernel shares: the pack's counts, the bf16 type, 16-byte vectors, reductions of a fixed
// order, and Philox with the dropout of `src/engine/random.rs`. One place, because forward, backward,
// the CPU engine and the kernels of different files must draw the same numbers and round alike.
//
// Plain C++17 without a CUDA header, so that NVRTC needs no include path and a host compiler can run
// the same text. What only the card has (matrix instructions, asynchronous copies) is in
// `intrinsics.cuh`. Symbols T, S, M, H, I, A, D, V are those of `src/model/shape.rs`.
#pragma once

#if defined(__CUDACC_RTC__)
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

// Dynamic shared memory of a kernel; a host compiler's headers may define it first.
#ifndef DYN_SHARED
#define DYN_SHARED(T, name) extern __shared__ __align__(16) T name[]
#endif

constexpr uint32_t FULL_WARP = 0xffffffffu;
// NVRTC knows neither INFINITY nor the host compilers' builtins for it.
#define INF __uint_as_float(0x7f800000u)

// ---- the pack --------------------------------------------------------------------------------

// True sizes of the pack on the device: `engine::PackCounts`, field by field. Kernels are launched
// for the largest pack and read the true sizes here, so that a recorded step can be replayed.
struct Counts {
    uint32_t tokens;       // T
    uint32_t sequences;    // S
    uint32_t masked;       // M
    uint32_t groups;       // ranking groups
    uint32_t epoch;        // of the samples; part of every dropout counter
    uint32_t step_masked;  // masked tokens of the whole step, all ranks
    uint32_t step_pairs;   // sequences or groups of the whole step, all ranks
    uint32_t documents;    // of ranking groups, where their scores come from several passages
};

// `engine::Rows` as a kernel argument: which count says how many rows there are.
enum : uint32_t { ROWS_TOKENS = 0, ROWS_SEQUENCES = 1, ROWS_MASKED = 2 };

__device__ inline uint32_t row_count(const Counts* counts, uint32_t rows) {
    return rows == ROWS_TOKENS ? counts->tokens : rows == ROWS_SEQUENCES ? counts->sequences : counts->masked;
}

// ---- numbers ---------------------------------------------------------------------------------

// The upper half of an f32. A type of its own and not `__nv_bfloat16`, whose header NVRTC would have
// to find on the user's machine.
struct alignas(2) bf16 {
    uint16_t bits;
};

__device__ inline float as_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline uint32_t as_bits(float x) { return __float_as_uint(x); }

// To the nearest bf16, ties to even; every NaN becomes 0x7fff, as the card's own instruction does.
__device__ inline uint32_t round_bf16(float x) {
    const uint32_t bits = as_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? rounded : 0x7fffu;
}
// Two values in one word, `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
__device__ inline float low_bf16(uint32_t pair) { return as_float(pair << 16); }
__device__ inline float high_bf16(uint32_t pair) { return as_float(pair & 0xffff0000u); }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }

template <class T> __device__ inline T to_real(float x);
template <> __device__ inline float to_real<float>(float x) { return x; }
template <> __device__ inline bf16 to_real<bf16>(float x) { return bf16{static_cast<uint16_t>(round_bf16(x))}; }

// `x` as it will be read back from memory of type T: what is kept for the backward pass is what the
// forward pass went on with.
template <class T> __device__ inline float rounded(float x) { return to_float(to_real<T>(x)); }

// ---- 16-byte vectors -------------------------------------------------------------------------

// Values of type T that one 16-byte access moves. Tensors start at multiples of 8 elements and row
// widths are multiples of 8, so every row consists of whole, aligned vectors.
template <class T> struct Vec;
template <> struct Vec<float> { static constexpr int WIDTH = 4; };
template <> struct Vec<bf16> { static constexpr int WIDTH = 8; };

__device__ inline void unpack(const uint4& raw, float (&x)[4]) {
    x[0] = as_float(raw.x), x[1] = as_float(raw.y), x[2] = as_float(raw.z), x[3] = as_float(raw.w);
}
__device__ inline void unpack(const uint4& raw, float (&x)[8]) {
    x[0] = low_bf16(raw.x), x[1] = high_bf16(raw.x), x[2] = low_bf16(raw.y), x[3] = high_bf16(raw.y);
    x[4] = low_bf16(raw.z), x[5] = high_bf16(raw.z), x[6] = low_bf16(raw.w), x[7] = high_bf16(raw.w);
}
__device__ inline uint4 packed(const float (&x)[4]) {
    return make_uint4(as_bits(x[0]), as_bits(x[1]), as_bits(x[2]), as_bits(x[3]));
}
// `pack_bf16` as one instruction (intrinsics.cuh); in C++ it is five a value, a seventh of GELU's.
__device__ inline uint32_t cvt_bf16x2(float low, float high);
__device__ inline uint4 packed(const float (&x)[8]) {
    return make_uint4(
        cvt_bf16x2(x[0], x[1]), cvt_bf16x2(x[2], x[3]), cvt_bf16x2(x[4], x[5]), cvt_bf16x2(x[6], x[7]));
}

template <class T> __device__ inline uint4 load_raw(const T* from) { return *reinterpret_cast<const uint4*>(from); }
template <class T> __device__ inline void store_raw(T* to, const uint4& raw) { *reinterpret_cast<uint4*>(to) = raw; }

template <class T> __device__ inline void load_vec(const T* from, float (&x)[Vec<T>::WIDTH]) {
    unpack(load_raw(from), x);
}
template <class T> __device__ inline void store_vec(T* to, const float (&x)[Vec<T>::WIDTH]) {
    store_raw(to, packed(x));
}

// ---- reductions of a fixed order -------------------------------------------------------------

// Sum over the warp, the same bits in every lane (each step adds the same pair in both partners).
template <class F> __device__ inline F warp_sum(F x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// Largest value of the warp; a NaN is passed over, as fmaxf does.
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// Sum over a block of WARPS whole warps, the same bits in every thread. `scratch` [WARPS] is shared
// memory; it may be used again at once.
template <int WARPS, class F> __device__ inline F block_sum(F x, F* scratch) {
    x = warp_sum(x);
    if (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    F total = scratch[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) total += scratch[warp];
    __syncthreads();
    return total;
}

// Largest value of the block, as `block_sum`.
template <int WARPS> __device__ inline float block_max(float x, float* scratch) {
    x = warp_max(x);
    if (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float top = scratch[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) top = fmaxf(top, scratch[warp]);
    __syncthreads();
    return top;
}

// ---- random numbers --------------------------------------------------------------------------

// Philox4x32-10 (Salmon et al., SC 2011), `random::philox`: key (seed, purpose), counter
// (sample, position, epoch, lane). A 32 x 32 -> 64 product is one instruction.
__device__ inline uint4 philox(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
        const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// Second words of the key, `random::purpose`.
constexpr uint32_t PURPOSE_MASK = 1;
constexpr uint32_t PURPOSE_DROPOUT = 0x100;

// One dropout site, `random::Dropout`: an element is dropped when its 16 bits are below `threshold`
// and multiplied by `scale` otherwise. Nothing is stored between forward and backward: drawing the
// numbers again costs less than reading them.
struct Dropout {
    uint32_t threshold;  // 0: no dropout, no number is drawn
    float scale;
    uint32_t seed;
    uint32_t site;
};

// The 128 bits that decide eight elements: element e by half e % 2 (0 = low) of word e / 2.
__device__ inline uint4 dropout_bits(const Dropout& drop, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    return philox(drop.seed, PURPOSE_DROPOUT + drop.site, c0, c1, c2, c3);
}
// Factor of the element that the low or the high half of `word` decides.
__device__ inline float factor_low(const Dropout& drop, uint32_t word) {
    return (word & 0xffffu) < drop.threshold ? 0.0f : drop.scale;
}
__device__ inline float factor_high(const Dropout& drop, uint32_t word) {
    return (word >> 16) < drop.threshold ? 0.0f : drop.scale;
}

// x *= factors of columns `column` .. of row (sample, position) of a [T, H] site; `column` is a
// multiple of the vector's width.
__device__ inline void drop_vec(
    const Dropout& drop, uint32_t sample, uint32_t position, uint32_t epoch, uint32_t column, float (&x)[8]) {
    const uint4 bits = dropout_bits(drop, sample, position, epoch, column / 8);
    x[0] *= factor_low(drop, bits.x), x[1] *= factor_high(drop, bits.x);
    x[2] *= factor_low(drop, bits.y), x[3] *= factor_high(drop, bits.y);
    x[4] *= factor_low(drop, bits.z), x[5] *= factor_high(drop, bits.z);
    x[6] *= factor_low(drop, bits.w), x[7] *= factor_high(drop, bits.w);
}
__device__ inline void drop_vec(
    const Dropout& drop, uint32_t sample, uint32_t position, uint32_t epoch, uint32_t column, float (&x)[4]) {
    const uint4 bits = dropout_bits(drop, sample, position, epoch, column / 8);
    const bool upper = column % 8 != 0;
    const uint32_t first = upper ? bits.z : bits.x, second = upper ? bits.w : bits.y;
    x[0] *= factor_low(drop, first), x[1] *= factor_high(drop, first);
    x[2] *= factor_low(drop, second), x[3] *= factor_high(drop, second);
}

// The header of the card's instructions builds on this one; whoever is included first, both are there.
#include "intrinsics.cuh"
