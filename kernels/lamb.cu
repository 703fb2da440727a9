// LAMB (You et al. 2020, algorithm 2, phi the identity, with bias correction; `op::LambDirection`
// and `op::LambApply`), each group one tensor:
//   g' = g min(1, clip_norm / (norm + 1e-6))   m = b1 m + (1 - b1) g'   v = b2 v + (1 - b2) g'^2
//   r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + decay w
//   w -= lr ratio r, ratio = |w| / |r| where the tensor decays and both norms are above 0, else 1
// When the norm of all gradients is not finite, r and the norms are 0 and the weights stay.
//
// Layouts as in `adamw.cu`; r takes the gradient's place between the launches. partials [tiles, 2] f32,
// tiles [groups + 1] the first tile of each group; norms [groups, 2] f32, the sums of w^2 and r^2.
// Three launches, because every element of a tensor needs the norms of all of it, and where ranks share
// a tensor the norms are summed over them before the last:
//   lamb_direction  moments, r, and the two sums of each tile (f32, 16 values a thread)
//   lamb_norms      one block a group adds its tiles in order, in f64
//   lamb_apply      w, its rounding to T, and the gradient set to zero
// Bytes a value (bf16): 16 read and 12 written, then 8 read and 10 written; 46 in all, 12 more than
// AdamW: r is written and read because a tensor's norm is known only when all of it has been seen.
// Geometry as in `adamw.cu`, but one group of four a thread and turn in lamb_direction: 48 registers, five blocks
// an SM. Tried there: two a turn, 60 registers and four blocks on sm_80 and sm_90, and on sm_100 an address that
// is put aside in the loop.
#include "slices.cuh"

__device__ inline float direction(const Constants& c, float gradient, float& m, float& v, float w) {
    update_moments(c, gradient, m, v);
    return fmaf(w, c.decay, c.step * m / fmaf(sqrtf(v), c.root, c.eps));
}

template <class T>
__device__ inline void lamb_direction(
    const Slice* __restrict__ table, uint32_t slices, const float* __restrict__ norm_sq, T* weights, float* master,
    float* grads, float* moment1, float* moment2, float* __restrict__ partials, float beta1,
    float beta2, float eps, float weight_decay, float clip_norm, double correction1, double correction2) {
    __shared__ Constants shared;
    __shared__ float scratch[WARPS];
    const Tile tile = find_tile(table, slices, blockIdx.x);
    if (threadIdx.x == 0)  // lr 1: the learning rate belongs to the last pass, decay is part of r
        shared = constants(1.0, beta1, beta2, eps, tile.slice.decay ? weight_decay : 0.0f, clip_norm, correction1,
                           correction2, norm_sq[0]);
    __syncthreads();
    const Constants c = shared;
    const float* w_at = Masters<T>(tile, weights, master).at;
    float* gradients = grads + tile.arena;
    float *m_at = moment1 + tile.state, *v_at = moment2 + tile.state;
    float squares = 0.0f, r_squares = 0.0f;
    if (c.broken) {
        for (uint32_t i = threadIdx.x; i < tile.length; i += BLOCK) gradients[i] = 0.0f;
    } else {
#pragma unroll 1  // see the head
        for (uint32_t i = 4 * threadIdx.x; i < 4 * tile.quads; i += 4 * BLOCK) {
            const float4 g = load4(gradients + i), w = load4(w_at + i);
            float4 m = load4(m_at + i), v = load4(v_at + i), r;
            r.x = direction(c, g.x, m.x, v.x, w.x), r.y = direction(c, g.y, m.y, v.y, w.y);
            r.z = direction(c, g.z, m.z, v.z, w.z), r.w = direction(c, g.w, m.w, v.w, w.w);
            store4(m_at + i, m), store4(v_at + i, v), store4(gradients + i, r);
            squares += (w.x * w.x + w.y * w.y) + (w.z * w.z + w.w * w.w);
            r_squares += (r.x * r.x + r.y * r.y) + (r.z * r.z + r.w * r.w);
        }
        for (uint32_t i = 4 * tile.quads + threadIdx.x; i < tile.length; i += BLOCK) {
            const float w = w_at[i];
            float m = m_at[i], v = v_at[i];
            const float r = direction(c, gradients[i], m, v, w);
            m_at[i] = m, v_at[i] = v, gradients[i] = r;
            squares += w * w, r_squares += r * r;
        }
    }
    squares = block_sum<WARPS>(squares, scratch);
    r_squares = block_sum<WARPS>(r_squares, scratch);
    if (threadIdx.x == 0) partials[2 * blockIdx.x] = squares, partials[2 * blockIdx.x + 1] = r_squares;
}

__device__ inline void lamb_norms(const float* __restrict__ partials, const uint32_t* __restrict__ tiles, float* __restrict__ norms) {
    __shared__ double scratch[WARPS];
    const uint32_t first = tiles[blockIdx.x], end = tiles[blockIdx.x + 1];
    double sums[2] = {};
    for (uint32_t tile = first + threadIdx.x; tile < end; tile += BLOCK) {
        const float2 both = reinterpret_cast<const float2*>(partials)[tile];
        sums[0] += both.x, sums[1] += both.y;
    }
    for (int k = 0; k < 2; ++k) {
        const double total = block_sum<WARPS>(sums[k], scratch);
        if (threadIdx.x == 0) norms[2 * blockIdx.x + k] = static_cast<float>(total);
    }
}

template <class T>
__device__ inline void lamb_apply(
    const Slice* __restrict__ table, uint32_t slices, const float* __restrict__ norms, T* weights, float* master,
    float* grads, float lr) {
    __shared__ float shared;
    const Tile tile = find_tile(table, slices, blockIdx.x);
    if (threadIdx.x == 0) {
        const double w = norms[2 * tile.slice.group], r = norms[2 * tile.slice.group + 1];
        const double ratio = tile.slice.decay && w > 0.0 && r > 0.0 ? sqrt(w / r) : 1.0;
        shared = static_cast<float>(static_cast<double>(lr) * tile.slice.lr_scale * ratio);
    }
    __syncthreads();
    const float step = -shared;
    const Masters<T> masters(tile, weights, master);
    float* gradients = grads + tile.arena;
#pragma unroll 4
    for (uint32_t i = 4 * threadIdx.x; i < 4 * tile.quads; i += 4 * BLOCK) {
        const float4 r = load4(gradients + i);
        const float4 w = load4(masters.at + i);
        masters.store(i, make_float4(fmaf(step, r.x, w.x), fmaf(step, r.y, w.y), fmaf(step, r.z, w.z), fmaf(step, r.w, w.w)));
        store4(gradients + i, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
    for (uint32_t i = 4 * tile.quads + threadIdx.x; i < tile.length; i += BLOCK) {
        masters.store(i, fmaf(step, gradients[i], masters.at[i]));
        gradients[i] = 0.0f;
    }
}

#define KERNELS(T, TYPE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK) lamb_direction_##TYPE(                                        \
        const Slice* table, uint32_t slices, const float* norm_sq, T* weights, float* master,                         \
        float* grads, float* moment1, float* moment2, float* partials, float beta1, float beta2, float eps,           \
        float weight_decay, float clip_norm, double correction1, double correction2) {                                \
        lamb_direction<T>(table, slices, norm_sq, weights, master, grads, moment1, moment2, partials, beta1, beta2,   \
                          eps, weight_decay, clip_norm, correction1, correction2);                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) lamb_norms_##TYPE(                                            \
        const float* partials, const uint32_t* tiles, float* norms) {                                                 \
        lamb_norms(partials, tiles, norms);                                                                           \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) lamb_apply_##TYPE(                                            \
        const Slice* table, uint32_t slices, const float* norms, T* weights, float* master, float* grads, float lr) { \
        lamb_apply<T>(table, slices, norms, weights, master, grads, lr);                                              \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
