// GELU in its exact form (Hendrycks & Gimpel 2016, the erf of BERT, not the tanh fit that cuBLASLt's
// epilogue has):   act = pre Phi(pre),   dact *= Phi(pre) + pre phi(pre)  in place,
// and the gradient of the bias in `pre`: the column sums of the new dact, which this pass has in registers.
//
// Layouts: pre, act, dact [rows, width] in T, end to end; partials [chunks of 128 rows, width] f32, which
// `add_partials` adds up in order (null: no bias is learnt). The bias is in `pre` already: the product's
// epilogue adds it before the one rounding to T, so that this pass reads `pre` once and writes `act`
// once. Behind the true count the forward writes nothing; the backward writes zeros up to `capacity`
// rows, because dact is the operand of the next products. The sums are of f32, before dact is rounded.
//
// Bytes a value (bf16): forward reads 2, writes 2; backward reads 4, writes 2, and a column sum apart would
// read 2 again.
// Geometry: forward: blocks of 256 threads, one 16-byte vector a thread. Backward: grid (slabs of 32 vectors,
// chunks of 128 rows), 8 warps; warp w takes rows w, w + 8, ..., 512 bytes a load, two rows in flight. At 16,384 x
// 3,072 that is 1,536 blocks; chunks of 256 rows would be 768, little more than one wave.
//
// Phi as the CPU engine has it: Phi(-|x|) = e^(-x^2/2) u P(u), u = 1 / (1 + 0.26 |x|), the form of
// Abramowitz & Stegun 7.1.26 with a Chebyshev fit of degree 8 (relative error 6e-8 on |x| <= 14). It
// keeps its relative accuracy in the left tail, where 1 + erf cancels, and gives the e^(-x^2/2) that
// the derivative needs. In bf16 the exponential and the division are the card's approximate ones
// (2 units of f32, far below bf16's rounding). nvcc 13.2 makes 33 instructions a value of the forward for
// sm_90 (39 with the rounding to bf16 in C++); the bytes of a value leave an H100 time for about 34 by its data
// sheet, so this pass lies between the two limits. No card has been timed. Tried: erff, which branches and
// needs an exponential of its own for the derivative.
#include "columns.cuh"

constexpr uint32_t BLOCK = 256;
constexpr uint32_t CHUNK = 128;  // rows of a block of the backward

struct Precise {
    static __device__ inline float exponential(float x) { return expf(x); }
    static __device__ inline float quotient(float a, float b) { return a / b; }
};
struct Fast {
    static __device__ inline float exponential(float x) { return __expf(x); }
    static __device__ inline float quotient(float a, float b) { return __fdividef(a, b); }
};
template <class T> struct MathOf { typedef Precise Type; };
template <> struct MathOf<bf16> { typedef Fast Type; };

// Phi(x); `bell` becomes e^(-x^2 / 2).
template <class Math> __device__ inline float normal(float x, float& bell) {
    const float t = fabsf(x);
    bell = Math::exponential(-0.5f * x * x);
    const float u = Math::quotient(1.0f, fmaf(t, 0.26f, 1.0f));
    float p = 0.03218906f;
    p = fmaf(p, u, -0.16085816f);
    p = fmaf(p, u, 0.26773123f);
    p = fmaf(p, u, -0.16910044f);
    p = fmaf(p, u, 0.1731767f);
    p = fmaf(p, u, 0.045956f);
    p = fmaf(p, u, 0.10429178f);
    p = fmaf(p, u, 0.10284498f);
    p = fmaf(p, u, 0.103768855f);
    const float tail = bell * u * p;
    return x > 0.0f ? 1.0f - tail : tail;
}

template <class T>
__device__ inline void gelu(const Counts* counts, uint32_t rows, const T* __restrict__ pre, T* __restrict__ act, uint32_t width) {
    constexpr int WIDTH = Vec<T>::WIDTH;
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * BLOCK + threadIdx.x) * WIDTH;
    if (at >= static_cast<uint64_t>(row_count(counts, rows)) * width) return;
    float x[WIDTH], bell;
    load_vec(pre + at, x);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) x[j] *= normal<typename MathOf<T>::Type>(x[j], bell);
    store_vec(act + at, x);
}

template <class T>
__device__ inline void gelu_backward(
    const Counts* counts, uint32_t rows, const T* __restrict__ pre, T* dact, float* __restrict__ partials,
    uint32_t capacity, uint32_t width) {
    constexpr int WIDTH = Vec<T>::WIDTH;
    constexpr float INV_SQRT_2PI = 0.3989423f;
    __shared__ Slab<T> slab;
    const uint32_t column = (blockIdx.x * 32 + threadIdx.x % 32) * WIDTH, first = blockIdx.y * CHUNK;
    const uint32_t count = row_count(counts, rows), end = min(capacity, first + CHUNK);
    float sum[WIDTH] = {};
    if (column < width) {
#pragma unroll 2
        for (uint32_t row = first + threadIdx.x / 32; row < end; row += COLUMN_WARPS) {
            const uint64_t at = static_cast<uint64_t>(row) * width + column;
            if (row >= count) {
                store_raw(dact + at, make_uint4(0, 0, 0, 0));
                continue;
            }
            float x[WIDTH], d[WIDTH];
            load_vec(pre + at, x);
            load_vec(dact + at, d);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                float bell;
                const float cdf = normal<typename MathOf<T>::Type>(x[j], bell);
                d[j] *= fmaf(x[j] * INV_SQRT_2PI, bell, cdf);
                sum[j] += d[j];
            }
            store_vec(dact + at, d);
        }
    }
    if (partials != nullptr) store_slab(slab, sum, partials + static_cast<uint64_t>(blockIdx.y) * width, width);
}

#define KERNELS(T, TYPE)                                                                                             \
    extern "C" __global__ void __launch_bounds__(BLOCK) gelu_##TYPE(                                                 \
        const Counts* counts, uint32_t rows, const T* pre, T* act, uint32_t width) {                                 \
        gelu<T>(counts, rows, pre, act, width);                                                                      \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(BLOCK) gelu_backward_##TYPE(                                        \
        const Counts* counts, uint32_t rows, const T* pre, T* dact, float* partials, uint32_t capacity,              \
        uint32_t width) {                                                                                            \
        gelu_backward<T>(counts, rows, pre, dact, partials, capacity, width);                                        \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
