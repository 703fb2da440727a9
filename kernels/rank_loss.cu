// The ranking head, documents' scores from their passages', and the ranking losses.
//
//   pooled = tanh(pre + b_p)    score = dropout(pooled) wᵀ + b    loss: `engine::RankLoss`, one of six
//   document = first, best, sum or mean of its passages' scores (`engine::Aggregate`)
//
// Layouts: pre [S, H] in T becomes pooled, then (backward) its own gradient; w [H], b [1], b_p [H] in T;
// scores, dscores [S] f32; cu_documents [documents + 1]: first passage of each document; targets, and scores
// and slopes of documents [documents] f32; cu_groups [groups + 1]: first document of each group, which is its
// positive. Where documents were not put together, a sequence is a document. The dropout of a sequence is
// keyed by its sample and position 0. H is a multiple of 8.
// `score_head`: one block of 256 a sequence. `aggregate_*`: one block, a thread a document, and `rank_loss`:
// one block, a thread a group, in f64 as on the CPU (a pack has a few hundred scores; what counts is that each
// is one launch). `score_head_backward`: heads.cuh; rows behind S become zeros.
// Bytes: S H values four times, a few hundred KB: the launches are latency.
#include "heads.cuh"

// `engine::RankLoss` in the order of its variants.
enum : uint32_t { LCE, PAIRWISE_SOFTMAX, HINGE, POINTWISE, LISTNET, MARGIN_MSE };

template <class T>
__device__ inline void score_head(
    const Counts* counts, const uint32_t* samples, const T* pool_bias, const T* w, const T* b, T* pre, float* scores,
    uint32_t hidden, const Dropout& drop) {
    __shared__ float scratch[HEAD_WARPS];
    const uint32_t sequence = blockIdx.x;
    if (sequence >= counts->sequences) return;
    float dot = 0.0f;
    for (uint32_t column = threadIdx.x * 8; column < hidden; column += HEAD_THREADS * 8) {
        T* at = pre + static_cast<size_t>(sequence) * hidden + column;
        float x[8], weights[8];
        pool(x, at, pool_bias + column);
        store_eight(at, x);
        load_eight(w + column, weights);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = rounded<T>(x[j]);  // what backward will read
        if (drop.threshold > 0) drop_vec(drop, samples[sequence], 0, counts->epoch, column, x);
#pragma unroll
        for (int j = 0; j < 8; ++j) dot = fmaf(x[j], weights[j], dot);
    }
    dot = block_sum<HEAD_WARPS>(dot, scratch);
    if (threadIdx.x == 0) scores[sequence] = dot + to_float(b[0]);
}

template <class T>
__device__ inline void score_head_backward(
    const Counts* counts, const uint32_t* samples, const T* w, const float* dscores, T* pooled, float* dpool_bias,
    float* dw, float* db, uint32_t hidden, uint32_t capacity, const Dropout& drop) {
    __shared__ __align__(16) float scratch[HEAD_LANES * HEAD_COLUMNS];
    __shared__ double wide[HEAD_WARPS];
    const uint32_t column = blockIdx.x * HEAD_COLUMNS + threadIdx.x % 8 * 8;
    if (blockIdx.x == 0) {
        double sum = 0.0;
        for (uint32_t s = threadIdx.x; s < counts->sequences; s += HEAD_THREADS) sum += dscores[s];
        sum = block_sum<HEAD_WARPS>(sum, wide);
        if (threadIdx.x == 0) db[0] += static_cast<float>(sum);
    }
    float dweight[8] = {}, dbias[8] = {};
    if (column < hidden) {
        float weights[8];
        load_eight(w + column, weights);
        for (uint32_t s = threadIdx.x / 8; s < capacity; s += HEAD_LANES) {
            T* at = pooled + static_cast<size_t>(s) * hidden + column;
            float x[8] = {};
            if (s < counts->sequences) {
                float d[8];
#pragma unroll
                for (int j = 0; j < 8; ++j) d[j] = dscores[s];
                if (drop.threshold > 0) drop_vec(drop, samples[s], 0, counts->epoch, column, d);
                load_eight(at, x);
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    dweight[j] = fmaf(d[j], x[j], dweight[j]);
                    x[j] = d[j] * weights[j] * (1.0f - x[j] * x[j]);
                    dbias[j] += x[j];
                }
            }
            store_eight(at, x);
        }
    }
    add_lanes(dweight, dw, hidden, scratch);
    add_lanes(dbias, dpool_bias, hidden, scratch);
}

// ---- passages ----------------------------------------------------------------------------------

// `engine::Aggregate` in the order of its variants.
enum : uint32_t { FIRST_P, MAX_P, SUM_P, AVG_P };

__device__ inline void aggregate_scores(
    const Counts* counts, const uint32_t* cu_documents, const float* scores, float* documents, uint32_t how) {
    for (uint32_t d = threadIdx.x; d < counts->documents; d += HEAD_THREADS) {
        const uint32_t first = cu_documents[d], n = how == FIRST_P ? 1 : cu_documents[d + 1] - first;
        double score = scores[first];
        for (uint32_t i = 1; i < n; ++i) {
            const double next = scores[first + i];
            score = how != MAX_P ? score + next : next > score ? next : score;
        }
        documents[d] = static_cast<float>(how == AVG_P ? score / n : score);
    }
}

__device__ inline void aggregate_backward(
    const Counts* counts, const uint32_t* cu_documents, const float* scores, const float* ddocuments, float* dscores,
    uint32_t how) {
    for (uint32_t d = threadIdx.x; d < counts->documents; d += HEAD_THREADS) {
        const uint32_t first = cu_documents[d], n = cu_documents[d + 1] - first;
        uint32_t best = 0;
        for (uint32_t i = 1; i < n && how == MAX_P; ++i) best = scores[first + i] > scores[first + best] ? i : best;
        const bool alone = how == FIRST_P || how == MAX_P;
        const double share = how == AVG_P ? 1.0 / n : 1.0;
        for (uint32_t i = 0; i < n; ++i) {
            dscores[first + i] = alone && i != best ? 0.0f : static_cast<float>(ddocuments[d] * share);
        }
    }
}

// ---- losses ------------------------------------------------------------------------------------

// ln(1 + e^x) without overflow.
__device__ inline double softplus(double x) { return (x > 0.0 ? x : 0.0) + log(1.0 + exp(-fabs(x))); }
__device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// A group's scores and targets; slopes go to `d`, times `scale`.
struct Group {
    const float *s, *t;
    float* d;
    uint32_t n;
    double scale;

    __device__ double log_sum(const float* x) const {
        double top = x[0], total = 0.0;
        for (uint32_t j = 1; j < n; ++j) top = x[j] > top ? x[j] : top;
        for (uint32_t j = 0; j < n; ++j) total += exp(x[j] - top);
        return top + log(total);
    }
    __device__ void set(uint32_t j, double slope) const { d[j] = static_cast<float>(scale * slope); }

    __device__ double lce() const {
        const double sum = log_sum(s);
        for (uint32_t j = 0; j < n; ++j) set(j, exp(s[j] - sum) - (j == 0 ? 1.0 : 0.0));
        return sum - s[0];
    }
    __device__ double listnet() const {
        const double sum = log_sum(s), wanted = log_sum(t);
        double loss = 0.0;
        for (uint32_t j = 0; j < n; ++j) {
            const double p = exp(t[j] - wanted);
            loss += p * (sum - s[j]);
            set(j, exp(s[j] - sum) - p);
        }
        return loss;
    }
    __device__ double pointwise() const {
        double loss = 0.0;
        for (uint32_t j = 0; j < n; ++j) {
            const double label = t[j] > 0.0f ? 1.0 : 0.0;
            loss += softplus(s[j]) - label * s[j];
            set(j, (sigmoid(s[j]) - label) / n);
        }
        return loss / n;
    }
    // The mean over the negatives of a loss of the margin, score of the positive - score of the negative.
    __device__ double pairs(uint32_t kind, double wanted) const {
        const double pairs = n > 1 ? n - 1 : 1;
        double sum = 0.0, first = 0.0;
        for (uint32_t j = 1; j < n; ++j) {
            const double margin = static_cast<double>(s[0]) - s[j];
            double loss, slope;
            if (kind == PAIRWISE_SOFTMAX) {
                loss = softplus(-margin), slope = -sigmoid(-margin);
            } else if (kind == HINGE) {
                loss = wanted - margin, slope = -1.0;
                if (!(loss > 0.0)) loss = slope = 0.0;
            } else {
                const double off = margin - (static_cast<double>(t[0]) - t[j]);
                loss = off * off, slope = 2.0 * off;
            }
            sum += loss, first += slope / pairs;
            set(j, -slope / pairs);
        }
        set(0, first);
        return sum / pairs;
    }
    __device__ double loss(uint32_t kind, double margin) const {
        if (kind == LCE) return lce();
        if (kind == POINTWISE) return pointwise();
        if (kind == LISTNET) return listnet();
        return pairs(kind, margin);
    }
};

__device__ inline void rank_loss(
    const Counts* counts, const uint32_t* cu_groups, const float* scores, const float* targets, float* dscores,
    float* sums, uint32_t kind, float margin, float weight) {
    __shared__ double scratch[HEAD_WARPS];
    const float scale = weight / static_cast<float>(max(counts->step_pairs, 1u));
    double loss = 0.0, right = 0.0;
    for (uint32_t g = threadIdx.x; g < counts->groups; g += HEAD_THREADS) {
        const uint32_t first = cu_groups[g], n = cu_groups[g + 1] - first;
        const Group group = {scores + first, targets + first, dscores + first, n, scale};
        loss += group.loss(kind, margin);
        bool best = true;
        for (uint32_t j = 1; j < n; ++j) best = best && group.s[j] < group.s[0];
        right += best ? 1.0 : 0.0;
    }
    loss = block_sum<HEAD_WARPS>(loss, scratch);
    right = block_sum<HEAD_WARPS>(right, scratch);
    if (threadIdx.x == 0) {
        sums[6] += static_cast<float>(loss);
        sums[7] += static_cast<float>(right);
        sums[8] += static_cast<float>(counts->groups);
    }
}

// score_head: grid (capacity of S); score_head_backward: grid (H / 64); the others one block; all of 256.
#define KERNELS(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS) score_head_##SUFFIX(                                  \
        const Counts* counts, const uint32_t* samples, const T* pool_bias, const T* w, const T* b, T* pre,           \
        float* scores, uint32_t hidden, uint32_t threshold, float drop_scale, uint32_t seed, uint32_t site) {        \
        score_head<T>(counts, samples, pool_bias, w, b, pre, scores, hidden, {threshold, drop_scale, seed, site});   \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS) score_head_backward_##SUFFIX(                         \
        const Counts* counts, const uint32_t* samples, const T* w, const float* dscores, T* pooled,                  \
        float* dpool_bias, float* dw, float* db, uint32_t hidden, uint32_t capacity, uint32_t threshold,             \
        float drop_scale, uint32_t seed, uint32_t site) {                                                            \
        score_head_backward<T>(                                                                                      \
            counts, samples, w, dscores, pooled, dpool_bias, dw, db, hidden, capacity,                               \
            {threshold, drop_scale, seed, site});                                                                    \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS) aggregate_scores_##SUFFIX(                            \
        const Counts* counts, const uint32_t* cu_documents, const float* scores, float* documents, uint32_t how) {   \
        aggregate_scores(counts, cu_documents, scores, documents, how);                                              \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS) aggregate_backward_##SUFFIX(                          \
        const Counts* counts, const uint32_t* cu_documents, const float* scores, const float* ddocuments,            \
        float* dscores, uint32_t how) {                                                                              \
        aggregate_backward(counts, cu_documents, scores, ddocuments, dscores, how);                                  \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS, 1) rank_loss_##SUFFIX(                                   \
        const Counts* counts, const uint32_t* cu_groups, const float* scores, const float* targets, float* dscores,  \
        float* sums, uint32_t kind, float margin, float weight) {                                                    \
        rank_loss(counts, cu_groups, scores, targets, dscores, sums, kind, margin, weight);                          \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
