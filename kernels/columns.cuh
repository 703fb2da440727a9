// Column sums of a block whose warps walk over rows of a slab of 32 vectors, in a fixed order.
#pragma once

#include "common.cuh"

// Warps of such a block; warp w takes rows w, w + 8, ... of the block's.
constexpr uint32_t COLUMN_WARPS = 8;

// What the block's lanes hold of its slab's columns, [COLUMN_WARPS][WIDTH][32]. Rows of 32 + 32 / WIDTH floats:
// neither the lanes' writes nor the reads by column share a bank.
template <class T> struct Slab {
    static constexpr int WIDTH = Vec<T>::WIDTH;
    float values[COLUMN_WARPS][WIDTH][32 + 32 / WIDTH];
};

// Adds up `sum`, the warps' sums of the columns of slab blockIdx.x, in the order of warps, and writes them to
// `to` [width]. Called by whole blocks.
template <class T>
__device__ inline void store_slab(Slab<T>& slab, const float (&sum)[Vec<T>::WIDTH], float* to, uint32_t width) {
    constexpr int WIDTH = Vec<T>::WIDTH;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) slab.values[warp][j][lane] = sum[j];
    __syncthreads();
    // slot = column of the slab, so that the write is contiguous; its lane is slot / WIDTH
    const uint32_t slot = threadIdx.x, at = blockIdx.x * 32 * WIDTH + slot;
    if (slot >= 32 * WIDTH || at >= width) return;
    float total = slab.values[0][slot % WIDTH][slot / WIDTH];
#pragma unroll
    for (uint32_t other = 1; other < COLUMN_WARPS; ++other) total += slab.values[other][slot % WIDTH][slot / WIDTH];
    to[at] = total;
}
