// LayerNorm's row, kept in registers from the first load to the last store, forward and backward. The
// embedding, the fused residual and the plain norm are all this row with other work around it.
#pragma once

#include "common.cuh"

// ---- a row in registers ----------------------------------------------------------------------

// Threads of every block of a row kernel: four rows of one warp each, or one row of four warps.
constexpr uint32_t BLOCK = 128;

// Row of this thread in a grid of one row a warp (or a block), and the number of rows of the grid.
template <int WARPS> __device__ inline uint32_t first_row() {
    return WARPS == 1 ? blockIdx.x * 4 + threadIdx.x / 32 : blockIdx.x;
}
template <int WARPS> __device__ inline uint32_t row_stride() { return WARPS == 1 ? gridDim.x * 4 : gridDim.x; }

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
