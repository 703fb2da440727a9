// Self-attention of packed sequences on tensor cores, forward (FlashAttention-2: Dao 2023).
//
//   S = q kᵀ / sqrt(D)    P = softmax(S)    out = (keep * P / (1 - rate)) v    lse = log(sum(exp(S)))
//
// Shapes: qkv [T, 3H] bf16 (q, k, v; each head by head), out [T, H] bf16, lse [T, A] f32 (backward draws
// P from it again). Scores never reach memory: the sum and the largest score of a row are kept while keys
// go by, and what has been added up is scaled when the largest score grows.
//
// Geometry: a block is four warps and takes queries of one head of one sequence, which stay in registers
// as fragments; keys and values come in tiles of 64, the next tile on its way (cp.async) while this one is
// worked on, one barrier a tile. Where the second stage of keys and values comes later, the queries lie
// first.
// * D = 64: 128 queries, 32 a warp, so that every fragment of k and v that ldmatrix reads serves two
//   products: with 16, shared memory (128 bytes a clock) would be as busy as the tensor cores (1,024 FMA a
//   clock on sm_80), with 32 half as busy.
// * D = 32: 64 queries, 16 a warp. The softmax outweighs the products here, so that more warps an SM are
//   worth more than fewer bytes. With 32 queries a warp the kernel spills at 3 blocks an SM, with 16 at 5
//   (sm_90).
// Work: 4 s D FLOP a query and head; bytes: 8 D T A plus keys and values once a block (from
// the second-level cache). Softmax in base 2: one FMA and one EX2 a score.
//
// Dropout is drawn as bits, four Philox blocks a lane for 16 x 64 scores (`keep_rows`): about nine integer
// instructions a score, where a block for each lane that needs a part of it would be 22.
//
// Resources (ptxas 13.2 for sm_80 / 90 / 100; no spills; registers decide the blocks an SM):
//            registers          shared   blocks   warps
//   D = 64   246 / 238 / 246    32 KB    2        8
//   D = 32   128 / 128 / 122    16 KB    4        16
// Not run on a card yet: every choice here rests on counted instructions and bytes, none on a measured time.
#include "attention.cuh"

constexpr int THREADS = 128;
constexpr int KEYS = 64;

// Running softmax of the rows g (index 0) and g + 8 (1) of one fragment row.
struct Running {
    float top[2], sum[2];
};

// s becomes e^(s - top) (unscaled scores in, factor = log2(e) / sqrt(D)); returns how the rows' earlier
// sums and outputs shrink.
__device__ inline float2 online_softmax(float (&s)[KEYS / 8][4], Running& run, float factor) {
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = run.top[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
        shrink[half] = exp2_approx((run.top[half] - top) * factor);
        run.top[half] = top;
        const float offset = top * factor;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
                s[n][e] = exp2_approx(fmaf(s[n][e], factor, -offset));
                sum += s[n][e];
            }
        }
        run.sum[half] = run.sum[half] * shrink[half] + sum;
    }
    return make_float2(shrink[0], shrink[1]);
}

// s [16 MT, KEYS] = q kᵀ for one warp's queries.
template <int D, int MT>
__device__ inline void scores(
    float (&s)[MT][KEYS / 8][4], const uint32_t (&q)[MT][D / 16][4], const uint4* k_tile) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            uint32_t b[2][2];
            load_b<D>(b, k_tile, 8 * n, k);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                mma_bf16_16816(s[m][n], q[m][k], b[0]);
                mma_bf16_16816(s[m][n + 1], q[m][k], b[1]);
            }
        }
    }
}

// o [16 MT, D] += p v, p given as the fragments of the scores.
template <int D, int MT>
__device__ inline void add_values(
    float (&o)[MT][D / 8][4], const float (&p)[MT][KEYS / 8][4], const uint4* v_tile) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) as_a(a[m], p[m][n], p[m][n + 1]);
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            uint32_t b[2][2];
            load_b_rows<D>(b, v_tile, 8 * n, d);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                mma_bf16_16816(o[m][2 * d], a[m], b[0]);
                mma_bf16_16816(o[m][2 * d + 1], a[m], b[1]);
            }
        }
    }
}

// Scores of keys from `valid` on become -INF, so that they weigh nothing.
__device__ inline void mask_behind(float (&s)[KEYS / 8][4], uint32_t valid) {
    const uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (8 * n + 2 * t + e % 2 >= valid) s[n][e] = -INF;
        }
    }
}

template <int D, int MT>
__device__ inline void attention_forward(
    const Span span, const Draws draws, const bf16* qkv, float* lse, bf16* out, uint32_t heads, uint4* shared) {
    constexpr uint32_t QUERIES = 64 * MT;
    constexpr uint32_t TILE = KEYS * D / 8;  // chunks of one tile of keys or values
    static_assert(QUERIES * D / 8 <= 2 * TILE, "queries fit where the second stage comes");
    const uint32_t hidden = heads * D, stride = 3 * hidden;
    const bf16* q = qkv + static_cast<size_t>(span.first) * stride + draws.head * D;
    const bf16* k = q + hidden;
    const bf16* v = k + hidden;
    // Two stages, each keys, then values.
    constexpr uint32_t STAGE = 2 * TILE;

    const bf16* own = q + static_cast<size_t>(span.start) * stride;
    copy_tile<D, QUERIES, THREADS>(shared + STAGE, own, stride, span.length - span.start);
    copy_tile<D, KEYS, THREADS>(shared, k, stride, span.length);
    copy_tile<D, KEYS, THREADS>(shared + TILE, v, stride, span.length);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

    const uint32_t warp_row = threadIdx.x / 32 * 16 * MT;
    const bool busy = span.start + warp_row < span.length;
    uint32_t q_fragments[MT][D / 16][4];
    float o[MT][D / 8][4];
    Running run[MT];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int d = 0; d < D / 16; ++d) load_a<D>(q_fragments[m][d], shared + STAGE, warp_row + 16 * m, d);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0.0f;
        run[m].top[0] = run[m].top[1] = -INF;
        run[m].sum[0] = run[m].sum[1] = 0.0f;
    }

    const float scale = 1.0f / sqrtf(static_cast<float>(D));
    const uint32_t tiles = (span.length + KEYS - 1) / KEYS;
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        cp_async_wait<0>();
        __syncthreads();  // this tile has arrived, and nobody reads the other stage any more
        const uint4* k_tile = shared + tile % 2 * STAGE;
        if (tile + 1 < tiles) {
            const uint32_t next = (tile + 1) * KEYS;
            uint4* to = shared + (tile + 1) % 2 * STAGE;
            copy_tile<D, KEYS, THREADS>(to, k + static_cast<size_t>(next) * stride, stride, span.length - next);
            copy_tile<D, KEYS, THREADS>(to + TILE, v + static_cast<size_t>(next) * stride, stride, span.length - next);
            cp_async_commit();
        }
        if (!busy) continue;
        float s[MT][KEYS / 8][4];
        scores<D, MT>(s, q_fragments, k_tile);
        const uint32_t valid = span.length - tile * KEYS;
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            if (valid < KEYS) mask_behind(s[m], valid);
            const float2 shrink = online_softmax(s[m], run[m], scale * LOG2_E);
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                o[m][n][0] *= shrink.x, o[m][n][1] *= shrink.x;
                o[m][n][2] *= shrink.y, o[m][n][3] *= shrink.y;
            }
            if (draws.drop.threshold > 0) {
                const uint32_t keep = keep_rows(draws, span.start + warp_row + 16 * m, tile * (KEYS / 8));
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) s[m][n][e] = (keep & row_bit(n, e)) ? s[m][n][e] : 0.0f;
                }
            }
        }
        add_values<D, MT>(o, s, k_tile + TILE);
    }
    if (!busy) return;

    const uint32_t group = threadIdx.x % 32 / 4;
    bf16* to = out + static_cast<size_t>(span.first) * hidden + draws.head * D;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = run[m].sum[half];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            factor[half] = draws.drop.scale / sum;
            const uint32_t row = span.start + warp_row + 16 * m + group + 8 * half;
            if (threadIdx.x % 4 == 0 && row < span.length) {
                lse[static_cast<size_t>(span.first + row) * heads + draws.head] = fmaf(run[m].top[half], scale, logf(sum));
            }
        }
        store_rows<D>(to, hidden, span.start + warp_row + 16 * m, span.length, o[m], factor[0], factor[1]);
    }
}

// Grid (slots, A), block 128, shared 4 * 64 * D * 2 bytes.
#define ATTENTION_FORWARD(D, MT, BLOCKS)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_d##D##_bf16(                             \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const bf16* qkv, float* lse,      \
        bf16* out, uint32_t heads, uint32_t threshold, float drop_scale, uint32_t seed, uint32_t site) {             \
        DYN_SHARED(uint4, shared);                                                                                   \
        Span span;                                                                                                   \
        if (!find_span<64 * MT>(cu_seqlens, counts->sequences, blockIdx.x, span)) return;                            \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[span.sequence], counts->epoch, blockIdx.y}; \
        attention_forward<D, MT>(span, draws, qkv, lse, out, heads, shared);                                         \
    }
ATTENTION_FORWARD(32, 1, 4)
ATTENTION_FORWARD(64, 2, 2)
