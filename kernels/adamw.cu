// AdamW (Loshchilov & Hutter 2019, as torch.optim.AdamW) over all slices in one pass: clip by the
// global norm that lies in device memory, both moments, the weight, its rounding to T, and the gradient
// set to zero for the next step. Nothing but the zeros when the norm is not finite.
//   g' = g min(1, clip_norm / (norm + 1e-6))
//   m += (1 - beta1) (g' - m)        v = beta2 v + (1 - beta2) g'^2
//   w = w (1 - lr decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// Layouts: weights (T) and grads (f32) are arenas; master, moment1 and moment2 (f32) hold the slices
// that this rank owns end to end. Where T is f32, the weights are their own master. table [slices],
// norm_sq [1].
// Bytes a value: bf16 reads g, m, v, master and writes all four and the weight, 34; f32 the same without
// the master, 32. BERT-base: 3.7 GB, 1.1 ms at 3.35 TB/s.
// Geometry: one block of 256 threads for 4096 values; four neighbouring values a thread and access, so a
// warp's accesses are 512 contiguous bytes (eight values a thread would leave every other 16 bytes of a
// sector to a second store). One thread computes the constants in f64 meanwhile.
#include "slices.cuh"

__device__ inline void update(const Constants& c, float gradient, float& m, float& v, float& w) {
    update_moments(c, gradient, m, v);
    w = fmaf(w, c.keep, -c.step * m / fmaf(sqrtf(v), c.root, c.eps));
}

template <class T>
__device__ inline void adamw(
    const Slice* __restrict__ table, uint32_t slices, const float* __restrict__ norm_sq, T* weights, float* master,
    float* grads, float* moment1, float* moment2, float lr, float beta1, float beta2, float eps, float weight_decay,
    float clip_norm, double correction1, double correction2) {
    __shared__ Constants shared;
    const Tile tile = find_tile(table, slices, blockIdx.x);
    if (threadIdx.x == 0)
        shared = constants(static_cast<double>(lr) * tile.slice.lr_scale, beta1, beta2, eps,
                           tile.slice.decay ? weight_decay : 0.0f, clip_norm, correction1, correction2, norm_sq[0]);
    __syncthreads();
    const Constants c = shared;
    const Masters<T> masters(tile, weights, master);
    float* gradients = grads + tile.arena;
    float *m_at = moment1 + tile.state, *v_at = moment2 + tile.state;
#pragma unroll 2
    for (uint32_t i = 4 * threadIdx.x; i < 4 * tile.quads; i += 4 * BLOCK) {
        if (!c.broken) {
            const float4 g = load4(gradients + i);
            float4 m = load4(m_at + i), v = load4(v_at + i), w = load4(masters.at + i);
            update(c, g.x, m.x, v.x, w.x), update(c, g.y, m.y, v.y, w.y);
            update(c, g.z, m.z, v.z, w.z), update(c, g.w, m.w, v.w, w.w);
            store4(m_at + i, m), store4(v_at + i, v), masters.store(i, w);
        }
        store4(gradients + i, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
    for (uint32_t i = 4 * tile.quads + threadIdx.x; i < tile.length; i += BLOCK) {
        if (!c.broken) {
            float m = m_at[i], v = v_at[i], w = masters.at[i];
            update(c, gradients[i], m, v, w);
            m_at[i] = m, v_at[i] = v, masters.store(i, w);
        }
        gradients[i] = 0.0f;
    }
}

#define KERNELS(T, TYPE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK) adamw_##TYPE(                                                 \
        const Slice* table, uint32_t slices, const float* norm_sq, T* weights, float* master, float* grads,           \
        float* moment1, float* moment2, float lr, float beta1, float beta2, float eps, float weight_decay,            \
        float clip_norm, double correction1, double correction2) {                                                    \
        adamw<T>(table, slices, norm_sq, weights, master, grads, moment1, moment2, lr, beta1, beta2, eps,             \
                 weight_decay, clip_norm, correction1, correction2);                                                  \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
