// Rows picked from and added back to a packed buffer: the masked tokens for the MLM head and the
// [CLS] tokens for the pooler.
//   gather_rows       out[i] = x[index[i]]
//   scatter_add_rows  x[index[i]] += src[i]; the rows of one call are distinct, so nothing collides
//
// Layouts: x [T, H], out and src [n, H] in T, index [n] u32. n is read on the device.
// Bytes a row (bf16): gather reads 2 H and writes 2 H, scatter reads 4 H and writes 2 H.
// Geometry: one warp a row, 4 rows a block, 16-byte vectors; the lanes of a warp read neighbouring
// vectors, so a row is a few whole cache lines wherever it lies.
#include "common.cuh"

constexpr uint32_t BLOCK = 128;

template <class T>
__device__ inline void gather_rows(
    const Counts* counts, uint32_t rows, const T* __restrict__ x, const uint32_t* __restrict__ index,
    T* __restrict__ out, uint32_t hidden) {
    const uint32_t row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= row_count(counts, rows)) return;
    const T* from = x + static_cast<uint64_t>(index[row]) * hidden;
    T* to = out + static_cast<uint64_t>(row) * hidden;
#pragma unroll 4
    for (uint32_t c = threadIdx.x % 32 * Vec<T>::WIDTH; c < hidden; c += 32 * Vec<T>::WIDTH)
        store_raw(to + c, load_raw(from + c));
}

template <class T>
__device__ inline void scatter_add_rows(
    const Counts* counts, uint32_t rows, const T* __restrict__ src, const uint32_t* __restrict__ index,
    T* __restrict__ x, uint32_t hidden) {
    const uint32_t row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= row_count(counts, rows)) return;
    const T* from = src + static_cast<uint64_t>(row) * hidden;
    T* to = x + static_cast<uint64_t>(index[row]) * hidden;
#pragma unroll 4
    for (uint32_t c = threadIdx.x % 32 * Vec<T>::WIDTH; c < hidden; c += 32 * Vec<T>::WIDTH) {
        float sum[Vec<T>::WIDTH], more[Vec<T>::WIDTH];
        load_vec(to + c, sum);
        load_vec(from + c, more);
#pragma unroll
        for (int j = 0; j < Vec<T>::WIDTH; ++j) sum[j] += more[j];
        store_vec(to + c, sum);
    }
}

#define KERNELS(T, TYPE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK) gather_rows_##TYPE(                                           \
        const Counts* counts, uint32_t rows, const T* x, const uint32_t* index, T* out, uint32_t hidden) {            \
        gather_rows<T>(counts, rows, x, index, out, hidden);                                                          \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) scatter_add_rows_##TYPE(                                      \
        const Counts* counts, uint32_t rows, const T* src, const uint32_t* index, T* x, uint32_t hidden) {            \
        scatter_add_rows<T>(counts, rows, src, index, x, hidden);                                                     \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
