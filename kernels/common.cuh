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
    uint32_t reserved;
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
__device__ inline uint4 packed(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
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

// ---- a row in registers ----------------------------------------------------------------------

// A row of H values held by WARPS warps, VALUES a lane, so that every pass after the first reads
// registers: vector i of a lane is vector `lane + 32 WARPS i` of the row, which keeps accesses of a
// warp contiguous. Lanes behind the row's end hold zeros.
// The widest row is 32 WARPS VALUES: one warp and 8, 16, 24 or 32 values up to H = 1024, four warps
// and 32 values up to H = 4096.
template <class T, int VALUES, int WARPS> struct Row {
    static constexpr int WIDTH = Vec<T>::WIDTH;
    static constexpr int VECTORS = VALUES / WIDTH;
    typedef float Values[VECTORS][WIDTH];
    typedef uint4 Raw[VECTORS];

    uint32_t first;    // this lane's first vector
    uint32_t vectors;  // of the row
    float per_value;   // 1 / H
    float* scratch;    // [WARPS], shared

    __device__ Row(uint32_t hidden, float* scratch)
        : first(threadIdx.x % (32 * WARPS)), vectors(hidden / WIDTH), per_value(1.0f / static_cast<float>(hidden)),
          scratch(scratch) {}

    __device__ bool has(int i) const { return first + 32u * WARPS * static_cast<uint32_t>(i) < vectors; }
    __device__ uint32_t column(int i) const { return (first + 32u * WARPS * static_cast<uint32_t>(i)) * WIDTH; }
    __device__ float sum(float x) const { return block_sum<WARPS>(x, scratch); }

    __device__ void fetch(const T* from, Raw& raw) const {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) raw[i] = has(i) ? load_raw(from + column(i)) : make_uint4(0, 0, 0, 0);
    }
    __device__ void load(const T* from, Values& x) const {
        Raw raw;
        fetch(from, raw);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) unpack(raw[i], x[i]);
    }
    __device__ void store(T* to, const Values& x) const {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i)
            if (has(i)) store_vec(to + column(i), x[i]);
    }
    __device__ void clear(T* to) const {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i)
            if (has(i)) store_raw(to + column(i), make_uint4(0, 0, 0, 0));
    }
    __device__ void drop(const Dropout& drop, uint32_t sample, uint32_t position, uint32_t epoch, Values& x) const {
        if (drop.threshold == 0) return;
#pragma unroll
        for (int i = 0; i < VECTORS; ++i)
            if (has(i)) drop_vec(drop, sample, position, epoch, column(i), x[i]);
    }
};

// Sum of one vector's values, as a tree: the chain of additions is what a lane waits for.
__device__ inline float tree_sum(const float (&x)[4]) { return (x[0] + x[1]) + (x[2] + x[3]); }
__device__ inline float tree_sum(const float (&x)[8]) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// (mean, 1 / sqrt(var + eps)) of a row, the variance from the differences to the mean.
template <class R> __device__ inline float2 row_moments(const R& row, const typename R::Values& x, float eps) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < R::VECTORS; ++i) total += tree_sum(x[i]);
    const float mean = row.sum(total) * row.per_value;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < R::VECTORS; ++i) {
        float square[R::WIDTH];
#pragma unroll
        for (int j = 0; j < R::WIDTH; ++j) square[j] = (x[i][j] - mean) * (x[i][j] - mean);
        if (row.has(i)) squares += tree_sum(square);
    }
    const float variance = row.sum(squares) * row.per_value;
    return make_float2(mean, 1.0f / sqrtf(variance + eps));
}

// x = (x - mean) rstd gamma + beta.
template <class T, class R>
__device__ inline void row_normalise(const R& row, float2 moments, const T* gamma, const T* beta, typename R::Values& x) {
#pragma unroll
    for (int i = 0; i < R::VECTORS; ++i) {
        if (!row.has(i)) continue;
        float g[R::WIDTH], b[R::WIDTH];
        load_vec(gamma + row.column(i), g);
        load_vec(beta + row.column(i), b);
#pragma unroll
        for (int j = 0; j < R::WIDTH; ++j) x[i][j] = (x[i][j] - moments.x) * moments.y * g[j] + b[j];
    }
}

// From the gradient `d` of LayerNorm's output to that of its input x, in place; adds this row's part
// of dgamma and dbeta. With hat = (x - mean) rstd and g = d gamma:
// dx = rstd (g - mean(g) - hat mean(g hat)).
template <class T, class R>
__device__ inline void row_backward(
    const R& row, float2 moments, const T* gamma, const typename R::Raw& x, typename R::Values& d,
    typename R::Values& dgamma, typename R::Values& dbeta) {
    typename R::Values hat;
    float sum_g = 0.0f, sum_hat = 0.0f;
#pragma unroll
    for (int i = 0; i < R::VECTORS; ++i) {
        float value[R::WIDTH], g[R::WIDTH], product[R::WIDTH];
        unpack(x[i], value);
        unpack(row.has(i) ? load_raw(gamma + row.column(i)) : make_uint4(0, 0, 0, 0), g);
#pragma unroll
        for (int j = 0; j < R::WIDTH; ++j) {
            hat[i][j] = (value[j] - moments.x) * moments.y;
            dgamma[i][j] += d[i][j] * hat[i][j];
            dbeta[i][j] += d[i][j];
            d[i][j] *= g[j];
            product[j] = d[i][j] * hat[i][j];
        }
        sum_g += tree_sum(d[i]);
        sum_hat += tree_sum(product);
    }
    const float mean_g = row.sum(sum_g) * row.per_value;
    const float mean_hat = row.sum(sum_hat) * row.per_value;
#pragma unroll
    for (int i = 0; i < R::VECTORS; ++i)
#pragma unroll
        for (int j = 0; j < R::WIDTH; ++j) d[i][j] = moments.y * (d[i][j] - mean_g - hat[i][j] * mean_hat);
}

// Adds up what a block's warps hold of a [H] column sum and writes it to `to` [H]; warps in their
// order. `shared` [4][32 VALUES] floats; blocks of 128 threads. Each lane's values lie in shared
// memory as 16-byte pieces with neighbouring lanes next to each other: no bank conflicts.
template <class T, int VALUES, int WARPS>
__device__ inline void store_columns(
    const Row<T, VALUES, WARPS>& row, const typename Row<T, VALUES, WARPS>::Values& x, float4* shared, float* to) {
    constexpr int PIECES = VALUES / 4, HALVES = Vec<T>::WIDTH / 4;
    if (WARPS > 1) {  // one row a block: every lane is alone with its columns
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            const float* v = &x[p / HALVES][p % HALVES * 4];
            if (row.has(p / HALVES))
                *reinterpret_cast<float4*>(to + row.column(p / HALVES) + p % HALVES * 4) =
                    make_float4(v[0], v[1], v[2], v[3]);
        }
        return;
    }
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();  // the previous sum has been read
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
        const float* v = &x[p / HALVES][p % HALVES * 4];
        shared[(warp * PIECES + p) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
    }
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < 32u * PIECES; slot += 128) {
        const uint32_t piece = slot / 32, vector = slot % 32 + piece / HALVES * 32;
        if (vector >= row.vectors) continue;
        float4 total = shared[slot];
#pragma unroll
        for (int other = 1; other < 4; ++other) {
            const float4 more = shared[other * PIECES * 32 + slot];
            total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
        }
        *reinterpret_cast<float4*>(to + vector * Vec<T>::WIDTH + piece % HALVES * 4) = total;
    }
}
