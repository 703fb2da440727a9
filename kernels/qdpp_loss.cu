// The QDPP head in two launches: pooler bias, tanh, two-way head, cross-entropy, accuracy, all gradients.
//
//   pooled = tanh(pre + b_p)    logits = pooled Wᵀ + b    loss = factor (log(e^l0 + e^l1) - l_label)
//   dlogits = scale factor (softmax(logits) - onehot(label))    dpre = (dlogits W) (1 - pooled^2)
//
// Layouts: pre [S, H] in T, becomes dpre; W [2, H], b [2], b_p [H] in T; labels, factors [S]; logits [S, 2]
// f32; results [S, 4] f32: loss, 1 where the label's logit is the larger, dlogits. H is a multiple of 8.
// `qdpp_logits`: one block of 256 a sequence. `qdpp_gradients`: heads.cuh; pooled is computed again, which
// costs a tanh a value and no buffer. Rows behind S become zeros (dpre is a factor of the pooler's
// products). Its first block adds statistics and the gradient of b; a launch of one block that only
// measures does nothing else.
// Bytes: S H values three times (in, in, out), a few hundred KB: both launches are latency.
#include "heads.cuh"

// Loss and gradient of two logits, in f64 as on the CPU; there are S of them.
__device__ inline void cross_entropy(
    float l0, float l1, uint32_t label, float factor, float scale, float (&result)[4]) {
    const double a = l0, b = l1, top = a > b ? a : b;
    const double e0 = exp(a - top), e1 = exp(b - top), total = e0 + e1;
    scale *= factor;
    const double own = label == 0 ? a : b, other = label == 0 ? b : a;
    result[0] = static_cast<float>(factor * (log(total) - (own - top)));
    result[1] = own > other ? 1.0f : 0.0f;
    result[2] = static_cast<float>(scale * (e0 / total - (label == 0 ? 1.0 : 0.0)));
    result[3] = static_cast<float>(scale * (e1 / total - (label == 1 ? 1.0 : 0.0)));
}

template <class T>
__device__ inline void qdpp_logits(
    const Counts* counts, const uint32_t* labels, const float* factors, const T* pool_bias, const T* w, const T* b,
    const T* pre, float* logits, float* results, uint32_t hidden, float weight) {
    __shared__ float scratch[HEAD_WARPS];
    const uint32_t sequence = blockIdx.x;
    if (sequence >= counts->sequences) return;
    float dot0 = 0.0f, dot1 = 0.0f;
    for (uint32_t column = threadIdx.x * 8; column < hidden; column += HEAD_THREADS * 8) {
        float x[8], w0[8], w1[8];
        pool(x, pre + static_cast<size_t>(sequence) * hidden + column, pool_bias + column);
        load_eight(w + column, w0);
        load_eight(w + hidden + column, w1);
#pragma unroll
        for (int j = 0; j < 8; ++j) dot0 = fmaf(x[j], w0[j], dot0), dot1 = fmaf(x[j], w1[j], dot1);
    }
    dot0 = block_sum<HEAD_WARPS>(dot0, scratch) + to_float(b[0]);
    dot1 = block_sum<HEAD_WARPS>(dot1, scratch) + to_float(b[1]);
    if (threadIdx.x == 0) {
        float result[4];
        const float scale = weight / static_cast<float>(max(counts->step_pairs, 1u));
        cross_entropy(dot0, dot1, labels[sequence], factors[sequence], scale, result);
        logits[2 * sequence] = dot0, logits[2 * sequence + 1] = dot1;
        for (int i = 0; i < 4; ++i) results[4 * sequence + i] = result[i];
    }
}

// sums[3..6] += loss, right ones, sequences; db [2] += dlogits when `train`.
__device__ inline void qdpp_stats(const Counts* counts, const float* results, float* db, float* sums, bool train) {
    __shared__ double scratch[HEAD_WARPS];
    double totals[4] = {};
    for (uint32_t s = threadIdx.x; s < counts->sequences; s += HEAD_THREADS) {
        for (int i = 0; i < 4; ++i) totals[i] += results[4 * s + i];
    }
    for (int i = 0; i < 4; ++i) totals[i] = block_sum<HEAD_WARPS>(totals[i], scratch);
    if (threadIdx.x != 0) return;
    sums[3] += static_cast<float>(totals[0]);
    sums[4] += static_cast<float>(totals[1]);
    sums[5] += static_cast<float>(counts->sequences);
    if (train) db[0] += static_cast<float>(totals[2]), db[1] += static_cast<float>(totals[3]);
}

template <class T>
__device__ inline void qdpp_gradients(
    const Counts* counts, const T* pool_bias, const T* w, const float* results, T* pre, float* dpool_bias, float* dw,
    float* db, float* sums, uint32_t hidden, uint32_t capacity, float weight) {
    __shared__ __align__(16) float scratch[HEAD_LANES * HEAD_COLUMNS];
    const bool train = weight != 0.0f;
    if (blockIdx.x == 0) qdpp_stats(counts, results, db, sums, train);
    if (!train) return;
    const uint32_t column = blockIdx.x * HEAD_COLUMNS + threadIdx.x % 8 * 8;
    float dw0[8] = {}, dw1[8] = {}, dbias[8] = {};
    if (column < hidden) {
        float w0[8], w1[8];
        load_eight(w + column, w0);
        load_eight(w + hidden + column, w1);
        for (uint32_t s = threadIdx.x / 8; s < capacity; s += HEAD_LANES) {
            T* at = pre + static_cast<size_t>(s) * hidden + column;
            float x[8] = {};
            if (s < counts->sequences) {
                const float d0 = results[4 * s + 2], d1 = results[4 * s + 3];
                pool(x, at, pool_bias + column);
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    dw0[j] = fmaf(d0, x[j], dw0[j]), dw1[j] = fmaf(d1, x[j], dw1[j]);
                    x[j] = fmaf(d0, w0[j], d1 * w1[j]) * (1.0f - x[j] * x[j]);
                    dbias[j] += x[j];
                }
            }
            store_eight(at, x);
        }
    }
    add_lanes(dw0, dw, hidden, scratch);
    add_lanes(dw1, dw + hidden, hidden, scratch);
    add_lanes(dbias, dpool_bias, hidden, scratch);
}

// qdpp_logits: grid (capacity of S); qdpp_gradients: grid (H / 64, or 1 to measure); blocks of 256.
#define KERNELS(T, SUFFIX)                                                                                         \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS) qdpp_logits_##SUFFIX(                               \
        const Counts* counts, const uint32_t* labels, const float* factors, const T* pool_bias, const T* w,        \
        const T* b, const T* pre, float* logits, float* results, uint32_t hidden, float weight) {                  \
        qdpp_logits<T>(counts, labels, factors, pool_bias, w, b, pre, logits, results, hidden, weight);            \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS) qdpp_gradients_##SUFFIX(                            \
        const Counts* counts, const T* pool_bias, const T* w, const float* results, T* pre, float* dpool_bias,     \
        float* dw, float* db, float* sums, uint32_t hidden, uint32_t capacity, float weight) {                     \
        qdpp_gradients<T>(counts, pool_bias, w, results, pre, dpool_bias, dw, db, sums, hidden, capacity, weight); \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
