// The gradient of attention on tensor cores (FlashAttention-2: Dao 2023) in one kernel, no atomics.
//
// With P = e^(S - lse), f = keep / (1 - rate), D_i = dout_i . out_i (a row's dot product):
//   dv = (f P)ᵀ dout    dP = f (dout vᵀ)    dS = P (dP - D)    dq = dS k / sqrt(D)    dk = dSᵀ q / sqrt(D)
// and the gradient of the bias of q, k, v: the column sums of dq, dk, dv.
//
// A block takes one head of one sequence, all of it: 16 keys a warp (128 keys at D = 64, 64 at D = 32), walks
// over the queries 64 at a time with dk and dv in registers, then takes the next keys. Scores are computed
// transposed (keys down, queries across), because then the fragments of P and dS are, as they lie, the left
// factors of the products for dv and dk. dS also goes through shared memory, [keys, 64 queries], where the
// warps read it the other way round for dq: a warp has 16 queries by 32 columns. What earlier keys gave dq
// waits in `sums`, f32 and in the order of fragments: always the same thread's, so it needs no barrier, and no
// other block adds to it, so the order of the sum is the order of the keys. Sequences of one tile of keys do
// not touch it.
// D_i and lse log2(e) of all rows are computed first and wait in `rows`; they come back with each tile of
// queries (cp.async). Column sums are kept a warp in shared memory; the block writes those of its sequence to
// `partials` [S, 3H], which `add_partials` adds up in the order of sequences. They are sums of f32, before dqkv
// is rounded.
//
// Layouts: qkv, dqkv [T, 3H], out, dout [T, H] bf16; lse [T, A] f32; rows [A, pitch, 2] f32,
// a sequence's rows at its slot of the work list of 64 rows a tile; sums [A, capacity / 64 + capacity / K + 1, 64, D]
// f32, K keys a tile: tile t of a sequence is number first / 64 + first / K + t, which leaves room for every
// sequence of more than K tokens. dqkv is overwritten, zeros behind T.
// Work: 10 s D FLOP a query and head (5 products). Bytes: qkv, dout, out once and out and dout once more for
// D_i, dqkv once: 20 D T A; and for dq 8 D T A for every tile of keys but the last, which stay in the
// second-level cache where it holds the sequences under way (128 KB each at 512 tokens, one a multiprocessor:
// 14 MB of 40 on an A100, 17 of 50 on an H100).
//
// Resources (ptxas 13.2 for sm_80 / 90 / 100; no spills; registers decide the blocks an SM):
//            registers          shared   blocks   warps
//   D = 64   199 / 210 / 253    86 KB    1        8
//   D = 32   162 / 163 / 168    35 KB    3        12
// Tried before: two kernels, one for dq and one for dk and dv, that each computed S, dP and the dropout for
// themselves: as fixed an order with blocks of 64 rows, better balanced for few and long sequences, but 7
// products in place of 5. Other ways to a fixed order: partial sums of dq a tile of keys, or dS itself, in
// memory: 400 MB a layer written and read at 32 x 512 tokens of BERT-base, which an H100 takes as long for as
// for the two products; turns between blocks, which would wait for each other.
// Tried on registers: 32 keys a warp at D = 32: 168 registers and spills on sm_90. Row values loaded by hand, a
// register each for the tile to come: spills on sm_100. Both products before any of the softmax: likewise.
// Not run on a card yet: every choice here rests on counted instructions and bytes, none on a measured time.
#include "attention.cuh"

constexpr int TILE_ROWS = 64;  // queries of a tile

// What follows from the head size.
template <int D> struct Tiles {
    static constexpr int WARPS = D / 8;  // 4 groups of 16 queries by D / 32 groups of 32 columns for dq
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int KEYS = 16 * WARPS;
    // Shared memory, in units of 16 bytes: two stages of (q, dout), keys, values, dS, row values, column sums.
    static constexpr int TILE = TILE_ROWS * D / 8;
    static constexpr int K = 4 * TILE, V = K + KEYS * D / 8, DS = V + KEYS * D / 8, ROWS = DS + KEYS * 8;
    static constexpr int SUMS = ROWS + 2 * TILE_ROWS / 2;
};

// (lse log2(e), D) of a sequence's rows; (INF, 0) behind its end up to a whole tile, so that what is behind
// weighs nothing. Eight lanes a row, 16 bytes (D = 64) or 8 (D = 32) of dout and out a lane.
template <int D>
__device__ inline void row_statistics(
    const Span& span, uint32_t head, uint32_t heads, const float* lse, const bf16* out, const bf16* dout, float2* rows) {
    const uint32_t hidden = heads * D, part = threadIdx.x % 8;
    const uint32_t end = (span.length + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
#pragma unroll 4
    for (uint32_t row = threadIdx.x / 8; row < end; row += Tiles<D>::THREADS / 8) {
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
        if (part == 0) rows[row] = inside ? make_float2(lse[token * heads + head] * LOG2_E, dot) : make_float2(INF, 0.0f);
    }
}

// A warp's fragments of 16 rows of a tile.
template <int D> __device__ inline void load_rows(uint32_t (&a)[D / 16][4], const uint4* tile, uint32_t row) {
#pragma unroll
    for (int d = 0; d < D / 16; ++d) load_a<D>(a[d], tile, row, d);
}

template <int N> __device__ inline void clear(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
}

// c [16, 16] = a (a tile's rows row .. row + 16)ᵀ
template <int D>
__device__ inline void product_rows(float (&c)[2][4], const uint32_t (&a)[D / 16][4], const uint4* tile, uint32_t row) {
    clear(c);
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
        uint32_t b[2][2];
        load_b<D>(b, tile, row, d);
        mma_bf16_16816(c[0], a[d], b[0]);
        mma_bf16_16816(c[1], a[d], b[1]);
    }
}

// c [16, D] += a [16, 16] (a tile's rows row .. row + 16)
template <int D>
__device__ inline void add_product(float (&c)[D / 8][4], const uint32_t (&a)[4], const uint4* tile, uint32_t row) {
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
        uint32_t b[2][2];
        load_b_rows<D>(b, tile, row, d);
        mma_bf16_16816(c[2 * d], a, b[0]);
        mma_bf16_16816(c[2 * d + 1], a, b[1]);
    }
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

// Starts the copies of a tile of queries, their dout and their row values.
template <int D>
__device__ inline void copy_queries(
    uint4* to, float2* to_rows, const Head<D>& at, const float2* rows, uint32_t start, uint32_t length) {
    constexpr int THREADS = Tiles<D>::THREADS;
    if (threadIdx.x < TILE_ROWS / 2) cp_async_16(to_rows + 2 * threadIdx.x, rows + start + 2 * threadIdx.x, true);
    copy_tile<D, TILE_ROWS, THREADS>(to, at.q + static_cast<size_t>(start) * at.stride, at.stride, length - start);
    copy_tile<D, TILE_ROWS, THREADS>(
        to + Tiles<D>::TILE, at.dout + static_cast<size_t>(start) * at.hidden, at.hidden, length - start);
    cp_async_commit();
}

// dS of 16 keys by 16 queries into the tile [keys, 64 queries]: a word has two queries of one key.
__device__ inline void store_ds(uint4* tile, uint32_t row, uint32_t query, const uint32_t (&ds)[4]) {
    const uint32_t group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint32_t* words = reinterpret_cast<uint32_t*>(tile) + t;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[4 * swizzled<64>(row + group + i % 2 * 8, query / 8 + i / 2)] = ds[i];
}

// dk, dv [16, D] of one warp += one tile of queries, 16 queries at a time; leaves dS in `ds_tile`. `rows`
// [64]: (lse log2(e), D). `inside`: whether this lane's two keys are in the sequence: a key behind it has the
// score 0, which may outweigh all others.
template <int D>
__device__ inline void dkv_tile(
    float (&dk)[D / 8][4], float (&dv)[D / 8][4], const uint32_t (&k)[D / 16][4], const uint32_t (&v)[D / 16][4],
    const float2* rows, const Draws& draws, uint32_t query, uint32_t key, const bool (&inside)[2], uint32_t valid,
    const uint4* q_tile, uint4* ds_tile) {
    const uint4* dout_tile = q_tile + Tiles<D>::TILE;
    const float factor = LOG2_E / sqrtf(static_cast<float>(D));
    const uint32_t t = threadIdx.x % 4;
    uint32_t keep = draws.drop.threshold > 0 ? keep_columns(draws, query, key / 8) : FULL_WARP;
#pragma unroll 1
    for (uint32_t at = 0; at < TILE_ROWS && at < valid; at += 16) {
        float s[2][4], dp[2][4];
        product_rows<D>(s, k, q_tile, at);
        // Two neighbouring queries each: (lse, D) of the first, (lse, D) of the second.
        float4 pair[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            pair[n] = *reinterpret_cast<const float4*>(rows + at + 8 * n + 2 * t);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float p = exp2_approx(fmaf(s[n][e], factor, e % 2 ? -pair[n].z : -pair[n].x));
                s[n][e] = inside[e / 2] ? p : 0.0f;
            }
        }
        product_rows<D>(dp, v, dout_tile, at);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const bool kept = keep & (1u << (4 * (e / 2) + 2 * n + e % 2));
                const float gradient = kept ? dp[n][e] * draws.drop.scale : 0.0f;
                dp[n][e] = s[n][e] * (gradient - (e % 2 ? pair[n].w : pair[n].y));
                s[n][e] = kept ? s[n][e] : 0.0f;
            }
        }
        keep >>= 8;
        uint32_t p_left[4], ds_left[4];
        as_a(p_left, s[0], s[1]);
        as_a(ds_left, dp[0], dp[1]);
        store_ds(ds_tile, threadIdx.x / 32 * 16, at, ds_left);
        add_product<D>(dv, p_left, dout_tile, at);
        add_product<D>(dk, ds_left, q_tile, at);
    }
}

// dq [16, 32] of one warp += dS k over `keys` keys of the tile (a multiple of 16).
template <int D>
__device__ inline void dq_tile(float (&dq)[4][4], const uint4* ds_tile, const uint4* k_tile, uint32_t keys) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 2
    for (uint32_t key = 0; key < keys; key += 16) {
        uint32_t a[4];
        ldmatrix_x4_trans(a, ds_tile + swizzled<64>(key + lane / 16 * 8 + lane % 8, warp % 4 * 2 + lane / 8 % 2));
#pragma unroll
        for (int d = 0; d < 2; ++d) {
            uint32_t b[2][2];
            load_b_rows<D>(b, k_tile, key, warp / 4 * 2 + d);
            mma_bf16_16816(dq[2 * d], a, b[0]);
            mma_bf16_16816(dq[2 * d + 1], a, b[1]);
        }
    }
}

// Adds the column sums of 16 rows times `factor` to `to` [8 N], which is this warp's alone.
template <int N> __device__ inline void add_columns(float* to, const float (&c)[N][4], float factor) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float sum = c[n][e] + c[n][e + 2];
            sum += __shfl_xor_sync(FULL_WARP, sum, 4);
            sum += __shfl_xor_sync(FULL_WARP, sum, 8);
            sum += __shfl_xor_sync(FULL_WARP, sum, 16);
            if (threadIdx.x % 32 < 4) to[8 * n + 2 * (threadIdx.x % 4) + e] += sum * factor;
        }
    }
}

// Where one head of one sequence goes.
struct Outputs {
    bf16* dqkv;       // the head's first column of dq
    float4* sums;     // of the sequence's rows
    float* partials;  // the head's first column; null where no bias is learnt
};

template <int D>
__device__ inline void attention_backward(
    const Span span, const Draws draws, const bf16* qkv, const float* lse, const bf16* out, const bf16* dout,
    float2* rows, const Outputs to, uint32_t heads, uint4* shared) {
    typedef Tiles<D> At;
    constexpr int THREADS = At::THREADS, WARPS = At::WARPS, KEYS = At::KEYS;
    const Head<D> head(span, draws.head, heads, qkv, dout);
    uint4 *k_tile = shared + At::K, *v_tile = shared + At::V, *ds_tile = shared + At::DS;
    float2* row_values = reinterpret_cast<float2*>(shared + At::ROWS);
    float* columns = reinterpret_cast<float*>(shared + At::SUMS);  // [WARPS, 2, D] of dk, dv; [4, D] of dq
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4;
    const uint32_t tiles = (span.length + TILE_ROWS - 1) / TILE_ROWS;
    const float scale = 1.0f / sqrtf(static_cast<float>(D));
    for (uint32_t i = threadIdx.x; i < (2 * WARPS + 4) * D; i += THREADS) columns[i] = 0.0f;
    row_statistics<D>(span, draws.head, heads, lse, out, dout, rows);

    for (uint32_t first = 0; first < span.length; first += KEYS) {
        __syncthreads();  // `rows` are there; nobody reads the last keys' tiles any more
        const uint32_t left = span.length - first;
        copy_tile<D, KEYS, THREADS>(k_tile, head.k + static_cast<size_t>(first) * head.stride, head.stride, left);
        copy_tile<D, KEYS, THREADS>(v_tile, head.v + static_cast<size_t>(first) * head.stride, head.stride, left);
        copy_queries<D>(shared, row_values, head, rows, 0, span.length);
        cp_async_wait<0>();
        __syncthreads();
        const bool busy = 16 * warp < left;
        const bool inside[2] = {16 * warp + group < left, 16 * warp + group + 8 < left};
        uint32_t k[D / 16][4], v[D / 16][4];
        load_rows<D>(k, k_tile, 16 * warp);
        load_rows<D>(v, v_tile, 16 * warp);
        float dk[D / 8][4], dv[D / 8][4];
        clear(dk);
        clear(dv);
        for (uint32_t tile = 0; tile < tiles; ++tile) {
            cp_async_wait<0>();
            __syncthreads();  // this tile has arrived; nobody reads the other stage or dS any more
            const uint32_t query = tile * TILE_ROWS, next = query + TILE_ROWS, other = (tile + 1) % 2;
            if (next < span.length)
                copy_queries<D>(
                    shared + 2 * other * At::TILE, row_values + other * TILE_ROWS, head, rows, next, span.length);
            if (busy)
                dkv_tile<D>(
                    dk, dv, k, v, row_values + tile % 2 * TILE_ROWS, draws, query, first + 16 * warp, inside,
                    span.length - query, shared + 2 * (tile % 2) * At::TILE, ds_tile);
            const uint32_t row = query + warp % 4 * 16;
            float4* sums = to.sums + (tile * WARPS + warp) * 128 + lane;
            float dq[4][4];
            clear(dq);
            if (first > 0 && row < span.length) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const float4 sum = sums[32 * n];
                    dq[n][0] = sum.x, dq[n][1] = sum.y, dq[n][2] = sum.z, dq[n][3] = sum.w;
                }
            }
            __syncthreads();  // all warps' dS
            if (row >= span.length) continue;
            dq_tile<D>(dq, ds_tile, k_tile, left < KEYS ? (left + 15) / 16 * 16 : KEYS);
            if (left > KEYS) {
#pragma unroll
                for (int n = 0; n < 4; ++n) sums[32 * n] = make_float4(dq[n][0], dq[n][1], dq[n][2], dq[n][3]);
                continue;
            }
            store_rows<32>(to.dqkv + warp / 4 * 32, head.stride, row, span.length, dq, scale, scale);
            add_columns(columns + 2 * WARPS * D + warp % 4 * D + warp / 4 * 32, dq, scale);
        }
        if (!busy) continue;
        const uint32_t row = first + 16 * warp;
        store_rows<D>(to.dqkv + head.hidden, head.stride, row, span.length, dk, scale, scale);
        store_rows<D>(to.dqkv + 2 * head.hidden, head.stride, row, span.length, dv, draws.drop.scale, draws.drop.scale);
        add_columns(columns + 2 * warp * D, dk, scale);
        add_columns(columns + (2 * warp + 1) * D, dv, draws.drop.scale);
    }
    if (to.partials == nullptr) return;
    __syncthreads();  // all warps' column sums
    for (uint32_t i = threadIdx.x; i < 3 * D; i += THREADS) {
        const uint32_t which = i / D, column = i % D;
        const float* from = which == 0 ? columns + 2 * WARPS * D : columns + (which - 1) * D;
        const uint32_t parts = which == 0 ? 4 : WARPS, step = which == 0 ? D : 2 * D;
        float sum = 0.0f;
        for (uint32_t part = 0; part < parts; ++part) sum += from[part * step + column];
        to.partials[which * head.hidden + column] = sum;
    }
}

// Grid (capacity of S, A), blocks of 4 D threads, shared 16 SUMS + (D / 4 + 4) D 4 bytes. pitch = 64 (slots of 64
// rows a tile). Blocks behind S write zeros to their row of `partials`.
#define ATTENTION_BACKWARD(D, BLOCKS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(4 * D, BLOCKS) attention_backward_d##D##_bf16(                      \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const bf16* qkv, const float* lse, \
        const bf16* out, const bf16* dout, float2* rows, float4* sums, bf16* dqkv, float* partials, uint32_t heads,  \
        uint32_t pitch, uint32_t capacity, uint32_t threshold, float drop_scale, uint32_t seed, uint32_t site) {     \
        DYN_SHARED(uint4, shared);                                                                                   \
        const uint32_t sequence = blockIdx.x, head = blockIdx.y, hidden = heads * D;                                 \
        for (uint32_t which = 0; which < 3; ++which)                                                                 \
            zero_behind<bf16, 4 * D>(dqkv, counts->tokens, capacity, 3 * hidden, which * hidden + head * D, D);      \
        if (partials != nullptr) partials += static_cast<size_t>(sequence) * 3 * hidden + head * D;                  \
        if (sequence >= counts->sequences) {                                                                         \
            for (uint32_t i = threadIdx.x; partials != nullptr && i < 3 * D; i += 4 * D)                             \
                partials[i / D * hidden + i % D] = 0.0f;                                                             \
            return;                                                                                                  \
        }                                                                                                            \
        const Span span = {cu_seqlens[sequence], cu_seqlens[sequence + 1] - cu_seqlens[sequence], 0, sequence};      \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[sequence], counts->epoch, head};           \
        const size_t slot = static_cast<size_t>(head) * pitch + (span.first / TILE_ROWS + sequence) * TILE_ROWS;     \
        const size_t tiles = capacity / TILE_ROWS + capacity / Tiles<D>::KEYS + 1;                                   \
        const size_t sum_tile = head * tiles + span.first / TILE_ROWS + span.first / Tiles<D>::KEYS;                 \
        const Outputs to = {                                                                                         \
            dqkv + static_cast<size_t>(span.first) * 3 * hidden + head * D, sums + sum_tile * (16 * D), partials};   \
        attention_backward<D>(span, draws, qkv, lse, out, dout, rows + slot, to, heads, shared);                     \
    }
ATTENTION_BACKWARD(32, 3)
ATTENTION_BACKWARD(64, 1)
