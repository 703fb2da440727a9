// The gradient of attention on tensor cores (FlashAttention-2: Dao 2023), two kernels, no atomics.
//
// With P = e^(S - lse), f = keep / (1 - rate), D_i = dout_i . out_i (a row's dot product):
//   dv = (f P)ᵀ dout    dP = f (dout vᵀ)    dS = P (dP - D)    dq = dS k / sqrt(D)    dk = dSᵀ q / sqrt(D)
//
// `attention_dq` goes first: a block takes 128 queries, walks over the keys and adds up dq in registers. On
// the way in it computes D and leaves (lse log2(e), D) of each row in `rows` [A, pitch] for the second
// kernel, a tile of 64 at a multiple of 512 bytes, so that they arrive with the tile of queries (cp.async).
// `attention_dkv`: a block takes 64 keys, walks over the queries and adds up dk and dv in registers. It
// computes the scores transposed (keys down, queries across), because then the fragments of P and dS are,
// as they lie, the left factors of the products for dv and dk: nothing goes through shared memory.
// Both compute S and dP for themselves: 7 products in place of 5. The alternatives add up dq over key
// tiles in memory, with float atomics (the order differs from run to run) or as partial sums [T / 64, T, H]
// in f32, which move more bytes than two products of D = 64 cost at 512 keys; at these lengths the second
// computation is the cheaper way to fixed sums.
// Work: 14 s D FLOP a query and head; bytes: qkv and dout twice, out and dqkv once: 24 D T A, and the walked
// tiles from the second-level cache. dqkv [T, 3H] is overwritten, zeros behind T.
//
// Scores are worked on in chunks of 16 x (16 MT), so that S and dP cost 16 MT registers and the tail of a
// sequence is skipped 16 at a time.
// A block is four warps; one has 16 keys (dkv) or 32 queries (dq, with one accumulator where dkv has two).
//
// Resources (ptxas 13.2 for sm_80 / 90 / 100; no spills; registers decide the blocks an SM):
//                registers          shared   blocks   warps
//   dq  D = 64   231 / 227 / 238    48 KB    2        8
//   dq  D = 32   154 / 153 / 154    24 KB    3        12
//   dkv D = 64   168 / 168 / 168    33 KB    3        12
//   dkv D = 32   122 / 121 / 128    17 KB    4        16
// Tried: 32 keys a warp for dkv at D = 32: 168 registers and spills on sm_90. Row values loaded by hand, a
// register each for the tile to come: spills on sm_100. Both products before any of the softmax: likewise.
// Not run on a card yet: every choice here rests on counted instructions and bytes, none on a measured time.
#include "attention.cuh"

constexpr int THREADS = 128;
constexpr int TILE_ROWS = 64;  // of the tiles that are walked over

// Where the row values of a sequence begin: tiles of 64 in the slots of the work list of 64 rows a tile.
__device__ inline float2* sequence_rows(float* rows, const Span& span, uint32_t head, uint32_t pitch) {
    const size_t slot = span.first / TILE_ROWS + span.sequence;
    return reinterpret_cast<float2*>(rows) + static_cast<size_t>(head) * pitch + slot * TILE_ROWS;
}

// (lse log2(e), D) of this block's rows into `rows`, the sequence's; (INF, 0) behind its end, so that what is
// behind weighs nothing. Eight lanes a row, 16 bytes (D = 64) or 8 (D = 32) of dout and out a lane.
template <int D, int ROWS>
__device__ inline void row_statistics(
    const Span span, uint32_t head, uint32_t heads, const float* lse, const bf16* out, const bf16* dout, float2* rows) {
    const uint32_t hidden = heads * D, part = threadIdx.x % 8;
#pragma unroll 4
    for (uint32_t row = span.start + threadIdx.x / 8; row < span.start + ROWS; row += THREADS / 8) {
        const size_t token = span.first + row;
        const bool inside = row < span.length;
        float dot = 0.0f;
        if (inside) {
            const size_t at = token * hidden + head * D + part * (D / 8);
            const uint2* a = reinterpret_cast<const uint2*>(out + at);
            const uint2* b = reinterpret_cast<const uint2*>(dout + at);
#pragma unroll
            for (int i = 0; i < D / 32; ++i) {
                const uint2 x = a[i], y = b[i];
                dot = fmaf(low_bf16(x.x), low_bf16(y.x), dot);
                dot = fmaf(high_bf16(x.x), high_bf16(y.x), dot);
                dot = fmaf(low_bf16(x.y), low_bf16(y.y), dot);
                dot = fmaf(high_bf16(x.y), high_bf16(y.y), dot);
            }
        }
        dot += __shfl_xor_sync(FULL_WARP, dot, 1);
        dot += __shfl_xor_sync(FULL_WARP, dot, 2);
        dot += __shfl_xor_sync(FULL_WARP, dot, 4);
        if (part != 0 || row / TILE_ROWS * TILE_ROWS >= span.length) continue;
        rows[row] = inside ? make_float2(lse[token * heads + head] * LOG2_E, dot) : make_float2(INF, 0.0f);
    }
}

// One warp's fragments of 16 MT rows.
template <int D, int MT>
__device__ inline void load_rows(uint32_t (&a)[MT][D / 16][4], const uint4* tile, uint32_t row) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int d = 0; d < D / 16; ++d) load_a<D>(a[m][d], tile, row + 16 * m, d);
    }
}

template <int MT, int N> __device__ inline void clear(float (&c)[MT][N][4]) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.0f;
    }
}

// c [16 MT, 16] = a (a tile's rows row .. row + 16)ᵀ
template <int D, int MT>
__device__ inline void product_rows(
    float (&c)[MT][2][4], const uint32_t (&a)[MT][D / 16][4], const uint4* tile, uint32_t row) {
    clear(c);
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
        uint32_t b[2][2];
        load_b<D>(b, tile, row, d);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            mma_bf16_16816(c[m][0], a[m][d], b[0]);
            mma_bf16_16816(c[m][1], a[m][d], b[1]);
        }
    }
}

// c [16 MT, D] += a [16 MT, 16] (a tile's rows row .. row + 16)
template <int D, int MT>
__device__ inline void add_product(
    float (&c)[MT][D / 8][4], const uint32_t (&a)[MT][4], const uint4* tile, uint32_t row) {
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
        uint32_t b[2][2];
        load_b_rows<D>(b, tile, row, d);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            mma_bf16_16816(c[m][2 * d], a[m], b[0]);
            mma_bf16_16816(c[m][2 * d + 1], a[m], b[1]);
        }
    }
}

// Starts the copies of two tiles that go together (k and v, or q and dout).
template <int D>
__device__ inline void copy_pair(
    uint4* to, const bf16* left, uint32_t left_stride, const bf16* right, uint32_t right_stride, uint32_t start,
    uint32_t length) {
    constexpr uint32_t TILE = TILE_ROWS * D / 8;
    copy_tile<D, TILE_ROWS, THREADS>(to, left + static_cast<size_t>(start) * left_stride, left_stride, length - start);
    copy_tile<D, TILE_ROWS, THREADS>(
        to + TILE, right + static_cast<size_t>(start) * right_stride, right_stride, length - start);
    cp_async_commit();
}

// The pointers of one head of one sequence.
template <int D> struct Head {
    uint32_t hidden, stride;
    const bf16 *q, *k, *v, *dout;
    __device__ Head(const Span& span, uint32_t head, uint32_t heads, const bf16* qkv, const bf16* dout_rows) {
        hidden = heads * D, stride = 3 * hidden;
        q = qkv + static_cast<size_t>(span.first) * stride + head * D;
        k = q + hidden, v = k + hidden;
        dout = dout_rows + static_cast<size_t>(span.first) * hidden + head * D;
    }
};

// ---- dq ----------------------------------------------------------------------------------------

// dq [16 MT, D] of one warp += one tile of keys, 16 keys at a time.
template <int D, int MT>
__device__ inline void dq_tile(
    float (&dq)[MT][D / 8][4], const uint32_t (&q)[MT][D / 16][4], const uint32_t (&dout)[MT][D / 16][4],
    const float2 (&rows)[MT][2], const Draws& draws, uint32_t query, uint32_t key, uint32_t valid, const uint4* k_tile) {
    const uint4* v_tile = k_tile + TILE_ROWS * D / 8;
    const float factor = LOG2_E / sqrtf(static_cast<float>(D));
    const uint32_t t = threadIdx.x % 4;
    uint32_t keep[MT];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        keep[m] = draws.drop.threshold > 0 ? keep_rows(draws, query + 16 * m, key / 8) : FULL_WARP;
    }
#pragma unroll 1
    for (uint32_t at = 0; at < TILE_ROWS && at < valid; at += 16) {
        float s[MT][2][4], dp[MT][2][4];
        product_rows<D, MT>(s, q, k_tile, at);
        product_rows<D, MT>(dp, dout, v_tile, at);
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const uint32_t bits = keep[m] >> (at / 32 * 8 + at / 16 % 2 * 4);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float2 row = rows[m][e / 2];
                    const bool inside = at + 8 * n + 2 * t + e % 2 < valid;
                    const float p = inside ? exp2_approx(fmaf(s[m][n][e], factor, -row.x)) : 0.0f;
                    const float kept = (bits & row_bit(n, e)) ? dp[m][n][e] * draws.drop.scale : 0.0f;
                    s[m][n][e] = p * (kept - row.y);
                }
            }
            as_a(a[m], s[m][0], s[m][1]);
        }
        add_product<D, MT>(dq, a, k_tile, at);
    }
}

template <int D, int MT>
__device__ inline void attention_dq(
    const Span span, const Draws draws, const bf16* qkv, const float* lse, const bf16* out, const bf16* dout,
    float2* rows, bf16* dqkv, uint32_t heads, uint4* shared) {
    constexpr uint32_t QUERIES = 64 * MT;
    constexpr uint32_t STAGE = 2 * TILE_ROWS * D / 8;
    const Head<D> at(span, draws.head, heads, qkv, dout);
    // Two stages of keys and values; queries and their dout come first where the second begins.
    uint4* q_tile = shared + STAGE;
    uint4* dout_tile = q_tile + QUERIES * D / 8;
    const uint32_t left = span.length - span.start;
    copy_tile<D, QUERIES, THREADS>(q_tile, at.q + static_cast<size_t>(span.start) * at.stride, at.stride, left);
    copy_tile<D, QUERIES, THREADS>(dout_tile, at.dout + static_cast<size_t>(span.start) * at.hidden, at.hidden, left);
    copy_pair<D>(shared, at.k, at.stride, at.v, at.stride, 0, span.length);
    row_statistics<D, QUERIES>(span, draws.head, heads, lse, out, dout, rows);
    cp_async_wait<0>();
    __syncthreads();  // also makes `rows` of this block's tile readable

    const uint32_t warp_row = threadIdx.x / 32 * 16 * MT, group = threadIdx.x % 32 / 4;
    const bool busy = span.start + warp_row < span.length;
    uint32_t q_fragments[MT][D / 16][4], dout_fragments[MT][D / 16][4];
    load_rows<D, MT>(q_fragments, q_tile, warp_row);
    load_rows<D, MT>(dout_fragments, dout_tile, warp_row);
    float2 row_values[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = span.start + warp_row + 16 * m + group + 8 * half;
            row_values[m][half] = row < span.length ? rows[row] : make_float2(INF, 0.0f);
        }
    }
    float dq[MT][D / 8][4];
    clear(dq);
    const uint32_t tiles = (span.length + TILE_ROWS - 1) / TILE_ROWS;
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        cp_async_wait<0>();
        __syncthreads();  // this tile has arrived, and nobody reads the other stage any more
        const uint32_t key = tile * TILE_ROWS, next = key + TILE_ROWS;
        if (next < span.length) {
            copy_pair<D>(shared + (tile + 1) % 2 * STAGE, at.k, at.stride, at.v, at.stride, next, span.length);
        }
        if (!busy) continue;
        dq_tile<D, MT>(
            dq, q_fragments, dout_fragments, row_values, draws, span.start + warp_row, key, span.length - key,
            shared + tile % 2 * STAGE);
    }
    if (!busy) return;
    const float scale = 1.0f / sqrtf(static_cast<float>(D));
    bf16* to = dqkv + static_cast<size_t>(span.first) * at.stride + draws.head * D;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        store_rows<D>(to, at.stride, span.start + warp_row + 16 * m, span.length, dq[m], scale, scale);
    }
}

// ---- dk and dv ---------------------------------------------------------------------------------

// dk, dv [16 MT, D] of one warp += one tile of queries, 16 queries at a time. `rows` [64]: (lse log2(e), D).
template <int D, int MT>
__device__ inline void dkv_tile(
    float (&dk)[MT][D / 8][4], float (&dv)[MT][D / 8][4], const uint32_t (&k)[MT][D / 16][4],
    const uint32_t (&v)[MT][D / 16][4], const float2* rows, const Draws& draws, uint32_t query, uint32_t key,
    uint32_t valid, const uint4* q_tile) {
    const uint4* dout_tile = q_tile + TILE_ROWS * D / 8;
    const float factor = LOG2_E / sqrtf(static_cast<float>(D));
    const uint32_t t = threadIdx.x % 4;
    uint32_t keep[MT];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        keep[m] = draws.drop.threshold > 0 ? keep_columns(draws, query, (key + 16 * m) / 8) : FULL_WARP;
    }
#pragma unroll 1
    for (uint32_t at = 0; at < TILE_ROWS && at < valid; at += 16) {
        float s[MT][2][4], dp[MT][2][4];
        product_rows<D, MT>(s, k, q_tile, at);
        // Two neighbouring queries each: (lse, D) of the first, (lse, D) of the second.
        float4 pair[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            pair[n] = *reinterpret_cast<const float4*>(rows + at + 8 * n + 2 * t);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    s[m][n][e] = exp2_approx(fmaf(s[m][n][e], factor, e % 2 ? -pair[n].z : -pair[n].x));
                }
            }
        }
        product_rows<D, MT>(dp, v, dout_tile, at);
        uint32_t p_left[MT][4], ds_left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < 2; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const bool kept = keep[m] & (1u << (4 * (e / 2) + 2 * n + e % 2));
                    const float gradient = kept ? dp[m][n][e] * draws.drop.scale : 0.0f;
                    dp[m][n][e] = s[m][n][e] * (gradient - (e % 2 ? pair[n].w : pair[n].y));
                    s[m][n][e] = kept ? s[m][n][e] : 0.0f;
                }
            }
            keep[m] >>= 8;
            as_a(p_left[m], s[m][0], s[m][1]);
            as_a(ds_left[m], dp[m][0], dp[m][1]);
        }
        add_product<D, MT>(dv, p_left, dout_tile, at);
        add_product<D, MT>(dk, ds_left, q_tile, at);
    }
}

// Starts the copies of a tile of queries, their dout and their row values.
template <int D>
__device__ inline void copy_queries(
    uint4* to, float2* to_rows, const Head<D>& at, const float2* rows, uint32_t start, uint32_t length) {
    if (threadIdx.x < TILE_ROWS / 2) cp_async_16(to_rows + 2 * threadIdx.x, rows + start + 2 * threadIdx.x, true);
    copy_pair<D>(to, at.q, at.stride, at.dout, at.hidden, start, length);
}

template <int D, int MT>
__device__ inline void attention_dkv(
    const Span span, const Draws draws, const bf16* qkv, const bf16* dout, const float2* rows, bf16* dqkv,
    uint32_t heads, uint4* shared) {
    constexpr uint32_t KEYS = 64 * MT;
    constexpr uint32_t STAGE = 2 * TILE_ROWS * D / 8;
    const Head<D> at(span, draws.head, heads, qkv, dout);
    // [2][64] row values, then two stages of queries and dout; keys and values come first where the second
    // begins.
    float2* row_values = reinterpret_cast<float2*>(shared);
    uint4* stages = shared + 2 * TILE_ROWS / 2;
    uint4* k_tile = stages + STAGE;
    uint4* v_tile = k_tile + KEYS * D / 8;
    const uint32_t left = span.length - span.start;
    copy_tile<D, KEYS, THREADS>(k_tile, at.k + static_cast<size_t>(span.start) * at.stride, at.stride, left);
    copy_tile<D, KEYS, THREADS>(v_tile, at.v + static_cast<size_t>(span.start) * at.stride, at.stride, left);
    copy_queries<D>(stages, row_values, at, rows, 0, span.length);
    cp_async_wait<0>();
    __syncthreads();

    const uint32_t warp_row = threadIdx.x / 32 * 16 * MT;
    const bool busy = span.start + warp_row < span.length;
    uint32_t k_fragments[MT][D / 16][4], v_fragments[MT][D / 16][4];
    load_rows<D, MT>(k_fragments, k_tile, warp_row);
    load_rows<D, MT>(v_fragments, v_tile, warp_row);
    float dk[MT][D / 8][4], dv[MT][D / 8][4];
    clear(dk);
    clear(dv);
    const uint32_t tiles = (span.length + TILE_ROWS - 1) / TILE_ROWS;
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        cp_async_wait<0>();
        __syncthreads();  // this tile has arrived, and nobody reads the other stage any more
        const uint32_t query = tile * TILE_ROWS, next = query + TILE_ROWS, other = (tile + 1) % 2;
        if (next < span.length) {
            copy_queries<D>(stages + other * STAGE, row_values + other * TILE_ROWS, at, rows, next, span.length);
        }
        if (!busy) continue;
        dkv_tile<D, MT>(
            dk, dv, k_fragments, v_fragments, row_values + tile % 2 * TILE_ROWS, draws, query, span.start + warp_row,
            span.length - query, stages + tile % 2 * STAGE);
    }
    if (!busy) return;
    const float scale = 1.0f / sqrtf(static_cast<float>(D));
    bf16* to = dqkv + static_cast<size_t>(span.first) * at.stride + at.hidden + draws.head * D;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        const uint32_t row = span.start + warp_row + 16 * m;
        store_rows<D>(to, at.stride, row, span.length, dk[m], scale, scale);
        store_rows<D>(to + at.hidden, at.stride, row, span.length, dv[m], draws.drop.scale, draws.drop.scale);
    }
}

// ---- kernels -----------------------------------------------------------------------------------

// Grid (slots of 64 MT queries, A), block 128, shared (128 + 2 * 64 MT) * D * 2 bytes. `rows` [A, pitch]
// pairs, pitch = 64 (slots of 64 rows a tile).
#define ATTENTION_DQ(D, MT, BLOCKS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_dq_d##D##_bf16(                          \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const bf16* qkv, const float* lse, \
        const bf16* out, const bf16* dout, float* rows, bf16* dqkv, uint32_t heads, uint32_t pitch,                  \
        uint32_t capacity, uint32_t threshold, float drop_scale, uint32_t seed, uint32_t site) {                     \
        DYN_SHARED(uint4, shared);                                                                                   \
        const uint32_t head = blockIdx.y;                                                                            \
        zero_behind<bf16, THREADS>(dqkv, counts->tokens, capacity, 3 * heads * D, head * D, D);                      \
        Span span;                                                                                                   \
        if (!find_span<64 * MT>(cu_seqlens, counts->sequences, blockIdx.x, span)) return;                            \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[span.sequence], counts->epoch, head};      \
        float2* own_rows = sequence_rows(rows, span, head, pitch);                                                   \
        attention_dq<D, MT>(span, draws, qkv, lse, out, dout, own_rows, dqkv, heads, shared);                        \
    }
ATTENTION_DQ(32, 2, 3)
ATTENTION_DQ(64, 2, 2)

// Grid (slots of 64 MT keys, A), block 128, shared 1024 + (128 + 2 * 64 MT) * D * 2 bytes.
#define ATTENTION_DKV(D, MT, BLOCKS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_dkv_d##D##_bf16(                         \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const bf16* qkv, const bf16* dout, \
        float* rows, bf16* dqkv, uint32_t heads, uint32_t pitch, uint32_t capacity, uint32_t threshold,              \
        float drop_scale, uint32_t seed, uint32_t site) {                                                            \
        DYN_SHARED(uint4, shared);                                                                                   \
        const uint32_t head = blockIdx.y;                                                                            \
        zero_behind<bf16, THREADS>(dqkv, counts->tokens, capacity, 3 * heads * D, (heads + head) * D, D);            \
        zero_behind<bf16, THREADS>(dqkv, counts->tokens, capacity, 3 * heads * D, (2 * heads + head) * D, D);        \
        Span span;                                                                                                   \
        if (!find_span<64 * MT>(cu_seqlens, counts->sequences, blockIdx.x, span)) return;                            \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[span.sequence], counts->epoch, head};      \
        const float2* own_rows = sequence_rows(rows, span, head, pitch);                                             \
        attention_dkv<D, MT>(span, draws, qkv, dout, own_rows, dqkv, heads, shared);                                 \
    }
ATTENTION_DKV(32, 1, 4)
ATTENTION_DKV(64, 1, 3)
