// What the optimiser's passes over the arenas share: the table of slices that says which elements a
// launch works on, cut into tiles of one block each.
#pragma once

#include "common.cuh"

// Elements that have one treatment and are contiguous in the arena and in the state.
struct Slice {
    uint32_t start;       // first element in the arenas of weights and gradients
    uint32_t length;      // elements
    uint32_t state;       // its first element in master weights and moments
    uint32_t first_tile;  // tiles of the slices before
    float lr_scale;       // factor of the learning rate
    uint32_t decay;       // 1: weight decay applies
    uint32_t group;       // its place in the list of groups
    uint32_t reserved;
};

constexpr uint32_t TILE = 4096;  // elements of a block
constexpr uint32_t BLOCK = 256;
constexpr uint32_t WARPS = BLOCK / 32;

// The part of a slice that one block works on.
struct Tile {
    Slice slice;
    uint64_t arena;   // first element in weights and gradients
    uint64_t state;   // first element in master weights and moments
    uint32_t length;  // elements, at most TILE
    uint32_t quads;   // groups of four that may move as one vector; the rest goes one by one
};

// Tile number `tile` of the table [slices]; found by bisection, as BERT has about 200 slices.
__device__ inline Tile find_tile(const Slice* table, uint32_t slices, uint32_t tile) {
    uint32_t low = 0, high = slices;  // table[low].first_tile <= tile < table[high].first_tile
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (table[middle].first_tile <= tile) low = middle;
        else high = middle;
    }
    Tile found;
    found.slice = table[low];
    const uint32_t from = (tile - found.slice.first_tile) * TILE;
    const uint32_t left = found.slice.length - from;
    found.length = left < TILE ? left : TILE;
    found.arena = static_cast<uint64_t>(found.slice.start) + from;
    found.state = static_cast<uint64_t>(found.slice.state) + from;
    // tensors start at multiples of 8; a slice that does not is worked on value by value
    found.quads = (found.arena % 4 == 0 && found.state % 4 == 0) ? found.length / 4 : 0;
    return found;
}

// Four values of a buffer as f32.
__device__ inline float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ inline void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ inline void store4(bf16* to, float4 x) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

// The f32 weights of a tile, which the update reads and writes: the master with its rounded copy, or the
// weights themselves where they are f32.
template <class T> struct Masters {
    float* at;
    T* copy;
    __device__ Masters(const Tile& tile, T* weights, float* master) : at(master + tile.state), copy(weights + tile.arena) {}
    __device__ void store(uint32_t i, float4 w) const { store4(at + i, w), store4(copy + i, w); }
    __device__ void store(uint32_t i, float w) const { at[i] = w, copy[i] = to_real<T>(w); }
};
template <> struct Masters<float> {
    float* at;
    __device__ Masters(const Tile& tile, float* weights, float*) : at(weights + tile.arena) {}
    __device__ void store(uint32_t i, float4 w) const { store4(at + i, w); }
    __device__ void store(uint32_t i, float w) const { at[i] = w; }
};

// Constants of one update (`engine::AdamW`) for one slice, computed in f64 by one thread of a block.
struct Constants {
    float clip;   // factor of the gradients, min(1, clip_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_
    float beta1;
    float beta2;
    float keep;   // 1 - lr weight_decay
    float step;   // lr / (1 - beta1^t)
    float root;   // 1 / sqrt(1 - beta2^t)
    float eps;
    float decay;  // weight decay of this slice
    uint32_t broken;  // the norm is not finite: nothing is updated
};

__device__ inline bool finite(float x) { return fabsf(x) < INF; }

// `lr` is already multiplied by the slice's factor; corrections are 1 - beta^t.
__device__ inline Constants constants(
    double lr, float beta1, float beta2, float eps, float decay, float clip_norm, double correction1,
    double correction2, float norm_sq) {
    const double clip = static_cast<double>(clip_norm) / (sqrt(static_cast<double>(norm_sq)) + 1e-6);
    Constants c;
    c.clip = clip_norm > 0.0f && clip < 1.0 ? static_cast<float>(clip) : 1.0f;
    c.beta1 = beta1, c.beta2 = beta2, c.eps = eps, c.decay = decay;
    c.keep = static_cast<float>(1.0 - lr * static_cast<double>(decay));
    c.step = static_cast<float>(lr / correction1);
    c.root = static_cast<float>(1.0 / sqrt(correction2));
    c.broken = !finite(norm_sq);
    return c;
}

// Both moments of one element after its gradient. The first as torch writes it: exact where the moment
// already equals the gradient.
__device__ inline void update_moments(const Constants& c, float gradient, float& m, float& v) {
    const float g = gradient * c.clip;
    m = fmaf(g - m, 1.0f - c.beta1, m);
    v = fmaf(g * g, 1.0f - c.beta2, v * c.beta2);
}
