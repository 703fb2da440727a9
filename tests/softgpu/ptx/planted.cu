// Small kernels that the PTX interpreter is tested with, each right and with one planted mistake: what
// the interpreter is for, it must find, and what is right it must leave alone.
// Written like the project's kernels: common.cuh, intrinsics.cuh, 128 threads.
#include "intrinsics.cuh"

enum Mistake {
    NONE,
    NO_BARRIER,      // between the copies' arrival and the reads of other warps
    NO_WAIT,         // for the copies
    NO_BARRIER_END,  // before the next copies overwrite what slow warps still read
    WRONG_LANE,      // ldmatrix rows handed out in another order
    OVERRUN,         // one row too many is read
    SHARED_OVERRUN,
    HALF_WARP,       // a shuffle for all lanes that half of them reach
    DIVERGED,        // a barrier that some threads do not reach
    UNORDERED,       // lanes of one warp hand a value over without __syncwarp
};

// c [64, 64] f32 = a [64, k] b [k, 64], bf16, k a multiple of 16: tiles of 16 columns and rows, copied
// asynchronously one ahead, in dynamic shared memory: two of a [64][16] and two of b [16][64].
template <int MISTAKE>
__device__ inline void tile_product(const bf16* a, const bf16* b, float* c, uint32_t k) {
    DYN_SHARED(bf16, tiles);
    const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    float sums[8][4] = {};
    auto fetch = [&](uint32_t step) {
        bf16* to = tiles + step % 2 * 2048;
        const uint32_t row = thread / 2, half = thread % 2;  // 64 rows of 16, in two pieces
        const bool past = MISTAKE == OVERRUN && row == 63 && half == 1;
        cp_async_16(to + row * 16 + half * 8, a + row * k + step * 16 + half * 8 + (past ? 8 : 0), true);
        const uint32_t deep = thread / 8, piece = thread % 8;  // 16 rows of 64, in eight pieces
        cp_async_16(to + 1024 + deep * 64 + piece * 8, b + (step * 16 + deep) * 64 + piece * 8, true);
        cp_async_commit();
    };
    fetch(0);
    const uint32_t steps = k / 16;
    for (uint32_t step = 0; step < steps; ++step) {
        if (step + 1 < steps) fetch(step + 1);
        if (MISTAKE != NO_WAIT) {
            if (step + 1 < steps) cp_async_wait<1>();
            else cp_async_wait<0>();
        }
        if (MISTAKE != NO_BARRIER) __syncthreads();
        const bf16* from = tiles + step % 2 * 2048;
        uint32_t fa[4];
        const uint32_t line = MISTAKE == WRONG_LANE ? lane / 2 : lane % 16;
        ldmatrix_x4(fa, from + (warp * 16 + line) * 16 + lane / 16 * 8);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t fb[4];
            ldmatrix_x4_trans(fb, from + 1024 + lane % 16 * 64 + (2 * pair + lane / 16) * 8);
            const uint32_t first[2] = {fb[0], fb[1]}, second[2] = {fb[2], fb[3]};
            mma_bf16_16816(sums[2 * pair], fa, first);
            mma_bf16_16816(sums[2 * pair + 1], fa, second);
        }
        if (MISTAKE != NO_BARRIER_END) __syncthreads();
    }
    const uint32_t row = warp * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        float* to = c + row * 64 + n * 8 + column;
        to[0] = sums[n][0], to[1] = sums[n][1];
        to[8 * 64] = sums[n][2], to[8 * 64 + 1] = sums[n][3];
    }
}

// out [rows] = sum of each row of x [rows, width] (a multiple of 4), a block a row.
template <int MISTAKE> __device__ inline void row_sum(const float* x, float* out, uint32_t width) {
    __shared__ float parts[4];
    const uint32_t thread = threadIdx.x;
    float sum = 0;
    const uint32_t last = width + (MISTAKE == OVERRUN && blockIdx.x + 1 == gridDim.x ? 4 : 0);
    for (uint32_t i = 4 * thread; i < last; i += 512) {
        float v[4];
        load_vec(x + blockIdx.x * width + i, v);
        sum += (v[0] + v[1]) + (v[2] + v[3]);
    }
    if (MISTAKE == HALF_WARP) {
        if (thread % 32 < 16) sum += __shfl_xor_sync(FULL_WARP, sum, 8);
    }
    sum = warp_sum(sum);
    if (thread % 32 == 0) parts[thread / 32 + (MISTAKE == SHARED_OVERRUN ? 4096 : 0)] = sum;
    if (MISTAKE == DIVERGED) {
        if (thread != 5) __syncthreads();
    } else if (MISTAKE != NO_BARRIER) {
        __syncthreads();
    }
    if (thread == 0) out[blockIdx.x] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// out [128] = x of the neighbouring lane, handed over through shared memory.
template <int MISTAKE> __device__ inline void neighbour(const float* x, float* out) {
    __shared__ float slots[128];
    const uint32_t thread = threadIdx.x;
    slots[thread] = x[thread];
    if (MISTAKE != UNORDERED) __syncwarp();
    out[thread] = slots[thread ^ 1];
}

// counts [16] += the number of each value of x [n] below 16: atomics in shared and in global memory.
__device__ inline void histogram_of(const uint32_t* x, uint32_t n, uint32_t* counts) {
    __shared__ uint32_t local[16];
    if (threadIdx.x < 16) local[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) {
        if (x[i] < 16) atomicAdd(&local[x[i]], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
}

// Numbers by every kind of instruction that the kernels use: out [n, 12].
__device__ inline void numbers_of(const float* x, const uint32_t* y, float* out, uint32_t n) {
    const uint32_t i = blockIdx.x * 128 + threadIdx.x;
    if (i >= n) return;
    float* to = out + 12 * i;
    const float v = x[i];
    to[0] = expf(v), to[1] = logf(fabsf(v) + 1.0f), to[2] = erff(v), to[3] = tanhf(v);
    to[4] = 1.0f / (v + 3.0f), to[5] = sqrtf(fabsf(v)), to[6] = rsqrtf(fabsf(v) + 0.5f), to[7] = to_float(to_real<bf16>(v));
    const uint4 draw = philox(y[i], 7, i, 1, 2, 3);
    to[8] = as_float(draw.x >> 9 | 0x3f800000u), to[9] = static_cast<float>(draw.y % 1000u);
    to[10] = static_cast<float>(__popc(draw.z) + (draw.w & 255u)), to[11] = static_cast<float>(static_cast<double>(v) * 3.0 / 7.0);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(128)
#define PRODUCT(name, mistake) \
    KERNEL name(const bf16* a, const bf16* b, float* c, uint32_t k) { tile_product<mistake>(a, b, c, k); }
#define SUM(name, mistake) \
    KERNEL name(const float* x, float* out, uint32_t width) { row_sum<mistake>(x, out, width); }

PRODUCT(product, NONE)
PRODUCT(product_no_barrier, NO_BARRIER)
PRODUCT(product_no_wait, NO_WAIT)
PRODUCT(product_no_barrier_end, NO_BARRIER_END)
PRODUCT(product_wrong_lane, WRONG_LANE)
PRODUCT(product_overrun, OVERRUN)
SUM(sum, NONE)
SUM(sum_no_barrier, NO_BARRIER)
SUM(sum_overrun, OVERRUN)
SUM(sum_shared_overrun, SHARED_OVERRUN)
SUM(sum_half_warp, HALF_WARP)
SUM(sum_diverged, DIVERGED)
KERNEL neighbours(const float* x, float* out) { neighbour<NONE>(x, out); }
KERNEL neighbours_unordered(const float* x, float* out) { neighbour<UNORDERED>(x, out); }
KERNEL histogram(const uint32_t* x, uint32_t n, uint32_t* counts) { histogram_of(x, n, counts); }
KERNEL numbers(const float* x, const uint32_t* y, float* out, uint32_t n) { numbers_of(x, y, out, n); }
