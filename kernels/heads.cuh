// What the two heads on the [CLS] rows share (QDPP: two classes, ranking: one score): a sequence's dot
// products, and the gradients that are sums over sequences.
//
// Gradients. pre [S, H] becomes its own gradient while the gradients of the head's weight [k, H] and of the
// pooler's bias [H] are summed over the sequences: a block takes 64 columns, thread (y, x) = (tid / 8,
// tid % 8) eight of them (16 bytes of bf16; one Philox block) and the sequences y, y + 32, ...; the 32
// threads' sums are added in their order through shared memory. A pack has a few hundred sequences at most,
// so one block a column range reads everything and no second pass is needed.
#pragma once

#include "common.cuh"

constexpr int HEAD_THREADS = 256;
constexpr int HEAD_WARPS = HEAD_THREADS / 32;
constexpr uint32_t HEAD_COLUMNS = 64;  // of a block of the gradient kernels
constexpr uint32_t HEAD_LANES = HEAD_THREADS / 8;

// Eight values of T or f32 at a multiple of 16 bytes.
__device__ inline void load_eight(const bf16* from, float (&x)[8]) { load_vec(from, x); }
__device__ inline void load_eight(const float* from, float (&x)[8]) {
    const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
__device__ inline void store_eight(bf16* to, const float (&x)[8]) { store_vec(to, x); }
__device__ inline void store_eight(float* to, const float (&x)[8]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
    *reinterpret_cast<float4*>(to + 4) = make_float4(x[4], x[5], x[6], x[7]);
}

// x = tanh(pre + bias), eight columns.
template <class T> __device__ inline void pool(float (&x)[8], const T* pre, const T* bias) {
    float b[8];
    load_eight(pre, x);
    load_eight(bias, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = tanhf(x[j] + b[j]);
}

// to[0..64 of this block's columns] += the sum over the block's 32 lanes of x, in their order.
__device__ inline void add_lanes(const float (&x)[8], float* to, uint32_t hidden, float* scratch) {
    const uint32_t lane = threadIdx.x / 8, part = threadIdx.x % 8;
    store_eight(scratch + lane * HEAD_COLUMNS + part * 8, x);
    __syncthreads();
    const uint32_t column = blockIdx.x * HEAD_COLUMNS + threadIdx.x;
    if (threadIdx.x < HEAD_COLUMNS && column < hidden) {
        float sum = scratch[threadIdx.x];
        for (uint32_t other = 1; other < HEAD_LANES; ++other) sum += scratch[other * HEAD_COLUMNS + threadIdx.x];
        to[column] += sum;
    }
    __syncthreads();
}
