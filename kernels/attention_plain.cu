// Attention by plain f32 arithmetic, forward and backward, for what the tensor-core kernels do not take:
// f32 models, and bf16 models with another head size than 32 or 64 (any multiple of 8 up to 128). The
// formulas, the work list, the row statistics and the dropout are those of `attention.cu` and
// `attention_backward.cu`; only the products differ, and probabilities stay f32.
//
// Geometry: a block of 128 threads takes 32 queries (or keys) and walks over tiles of 32. Rows in shared
// memory are f32, D + 4 apart, so that the eight threads that read eight neighbouring rows 16 bytes at a
// time meet eight different groups of four banks. Thread (y, x) = (tid / 8, tid % 8) computes scores of rows
// 2 y, 2 y + 1 by columns x, x + 8, x + 16, x + 24, and of every product with D columns the 16-byte groups
// x, x + 8, ... of the same two rows. A tile of 32 x 32 has 128 Philox blocks: one a thread, shared as bits.
// Shared memory: (3 or 4) * 32 (D + 4) + (1 or 2) * 32 * 36 floats; 64 KB at most (D = 128, backward).
// Two barriers a tile more than a double buffer would need: this path is for exactness, not for speed.
#include "attention.cuh"

constexpr int THREADS = 128;
constexpr int ROWS = 32;    // of every tile
constexpr int PITCH = 36;   // floats between rows of a tile of scores
constexpr int GROUPS = 4;   // most 16-byte groups of a thread: D / 4 / 8

// Rows `start` .. of a head into a tile [ROWS, D + 4], times `factor`; zeros behind `length`.
template <class T>
__device__ inline void load_tile(
    float* tile, const T* from, uint32_t stride, uint32_t start, uint32_t length, uint32_t d, float factor) {
    constexpr int WIDTH = Vec<T>::WIDTH;
    const uint32_t chunks = d / WIDTH;
    for (uint32_t i = threadIdx.x; i < ROWS * chunks; i += THREADS) {
        const uint32_t row = i / chunks, column = i % chunks * WIDTH;
        float x[WIDTH] = {};
        if (start + row < length) load_vec(from + static_cast<size_t>(start + row) * stride + column, x);
#pragma unroll
        for (int j = 0; j < WIDTH; j += 4) {
            float4* to = reinterpret_cast<float4*>(tile + row * (d + 4) + column + j);
            *to = make_float4(x[j] * factor, x[j + 1] * factor, x[j + 2] * factor, x[j + 3] * factor);
        }
    }
}

// c [2][4] = two rows of `left` by four of `right`, D deep.
__device__ inline void products(float (&c)[2][4], const float* left, const float* right, uint32_t d) {
    const uint32_t pitch = d + 4, y = threadIdx.x / 8, x = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.0f;
    for (uint32_t k = 0; k < d; k += 4) {
        float4 a[2], b[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) a[i] = *reinterpret_cast<const float4*>(left + (2 * y + i) * pitch + k);
#pragma unroll
        for (int j = 0; j < 4; ++j) b[j] = *reinterpret_cast<const float4*>(right + (x + 8 * j) * pitch + k);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                c[i][j] = fmaf(a[i].x, b[j].x, c[i][j]);
                c[i][j] = fmaf(a[i].y, b[j].y, c[i][j]);
                c[i][j] = fmaf(a[i].z, b[j].z, c[i][j]);
                c[i][j] = fmaf(a[i].w, b[j].w, c[i][j]);
            }
        }
    }
}

// c [2][D] += two rows of `weights` [ROWS, PITCH] times `rows` [ROWS, D + 4].
__device__ inline void add_weighted(float4 (&c)[2][GROUPS], const float* weights, const float* rows, uint32_t d) {
    const uint32_t y = threadIdx.x / 8, x = threadIdx.x % 8;
    for (uint32_t j = 0; j < ROWS; ++j) {
        const float a[2] = {weights[2 * y * PITCH + j], weights[(2 * y + 1) * PITCH + j]};
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            const uint32_t column = 4 * (x + 8 * g);
            if (column >= d) break;
            const float4 b = *reinterpret_cast<const float4*>(rows + j * (d + 4) + column);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                c[i][g].x = fmaf(a[i], b.x, c[i][g].x), c[i][g].y = fmaf(a[i], b.y, c[i][g].y);
                c[i][g].z = fmaf(a[i], b.z, c[i][g].z), c[i][g].w = fmaf(a[i], b.w, c[i][g].w);
            }
        }
    }
}

// Two rows of c times `factor` to rows `row`, `row` + 1 of `to`, those below `length`.
template <class T>
__device__ inline void store_pair(
    T* to, uint32_t stride, uint32_t row, uint32_t length, const float4 (&c)[2][GROUPS], const float (&factor)[2],
    uint32_t d) {
    const uint32_t x = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            const uint32_t column = 4 * (x + 8 * g);
            if (column >= d || row + i >= length) break;
            T* at = to + static_cast<size_t>(row + i) * stride + column;
            at[0] = to_real<T>(c[i][g].x * factor[i]), at[1] = to_real<T>(c[i][g].y * factor[i]);
            at[2] = to_real<T>(c[i][g].z * factor[i]), at[3] = to_real<T>(c[i][g].w * factor[i]);
        }
    }
}

__device__ inline void clear(float4 (&c)[2][GROUPS]) {
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) c[0][g] = c[1][g] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Over the eight threads of a row.
__device__ inline float row_max(float x) {
    for (int offset = 1; offset < 8; offset *= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}
__device__ inline float row_sum(float x) {
    for (int offset = 1; offset < 8; offset *= 2) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

// Keep bits of 32 queries by 32 keys: byte [query][key / 8] of `keep`, bit key % 8.
__device__ inline void draw_tile(unsigned char* keep, const Draws& draws, uint32_t query, uint32_t key) {
    if (draws.drop.threshold > 0) {
        keep[threadIdx.x] = keep_bits(draws, query + threadIdx.x / 4, key / 8 + threadIdx.x % 4);
    }
}
__device__ inline bool kept(const unsigned char* keep, const Draws& draws, uint32_t query, uint32_t key) {
    return draws.drop.threshold == 0 || (keep[query * 4 + key / 8] >> key % 8 & 1);
}

// One head of one sequence.
template <class T> struct Head {
    uint32_t d, hidden, stride, length;
    const T *q, *k, *v;
    float scale;
    __device__ Head(const Span& span, uint32_t head, uint32_t heads, uint32_t size, const T* qkv) {
        d = size, hidden = heads * size, stride = 3 * hidden, length = span.length;
        q = qkv + static_cast<size_t>(span.first) * stride + head * size;
        k = q + hidden, v = k + hidden;
        scale = 1.0f / sqrtf(static_cast<float>(size));
    }
};

template <class T>
__device__ inline void plain_forward(
    const Span span, const Draws draws, const T* qkv, float* lse, T* out, uint32_t heads, uint32_t d, float* shared) {
    __shared__ unsigned char keep[THREADS];
    const Head<T> at(span, draws.head, heads, d, qkv);
    float* q_tile = shared;
    float* k_tile = q_tile + ROWS * (d + 4);
    float* v_tile = k_tile + ROWS * (d + 4);
    float* p_tile = v_tile + ROWS * (d + 4);
    const uint32_t y = threadIdx.x / 8, x = threadIdx.x % 8;
    load_tile(q_tile, at.q, at.stride, span.start, span.length, d, 1.0f);
    float4 o[2][GROUPS];
    clear(o);
    float top[2] = {-INF, -INF}, sum[2] = {0.0f, 0.0f};
    for (uint32_t key = 0; key < span.length; key += ROWS) {
        __syncthreads();
        load_tile(k_tile, at.k, at.stride, key, span.length, d, at.scale);
        load_tile(v_tile, at.v, at.stride, key, span.length, d, 1.0f);
        draw_tile(keep, draws, span.start, key);
        __syncthreads();
        float s[2][4];
        products(s, q_tile, k_tile, d);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float largest = top[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (key + x + 8 * j >= span.length) s[i][j] = -INF;
                largest = fmaxf(largest, s[i][j]);
            }
            largest = row_max(largest);
            const float shrink = expf(top[i] - largest);
            top[i] = largest;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float p = expf(s[i][j] - largest);
                sum[i] += p;
                p_tile[(2 * y + i) * PITCH + x + 8 * j] = kept(keep, draws, 2 * y + i, x + 8 * j) ? p : 0.0f;
            }
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                o[i][g].x *= shrink, o[i][g].y *= shrink, o[i][g].z *= shrink, o[i][g].w *= shrink;
            }
        }
        __syncwarp();  // rows 2 y, 2 y + 1 of p_tile are written and read by the same warp
        add_weighted(o, p_tile, v_tile, d);
    }
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float total = row_sum(sum[i]);
        factor[i] = draws.drop.scale / total;
        const uint32_t row = span.start + 2 * y + i;
        if (x == 0 && row < span.length) {
            lse[static_cast<size_t>(span.first + row) * heads + draws.head] = top[i] + logf(total);
        }
    }
    T* to = out + static_cast<size_t>(span.first) * at.hidden + draws.head * d;
    store_pair(to, at.hidden, span.start + 2 * y, span.length, o, factor, d);
}

// dq of 32 queries; leaves (lse, D) of each row in `rows` for the second kernel.
template <class T>
__device__ inline void plain_dq(
    const Span span, const Draws draws, const T* qkv, const float* lse, const T* out, const T* dout, float2* rows,
    T* dqkv, uint32_t heads, uint32_t d, float* shared) {
    __shared__ unsigned char keep[THREADS];
    const Head<T> at(span, draws.head, heads, d, qkv);
    const uint32_t y = threadIdx.x / 8, x = threadIdx.x % 8;
    float* q_tile = shared;
    float* dout_tile = q_tile + ROWS * (d + 4);
    float* k_tile = dout_tile + ROWS * (d + 4);
    float* v_tile = k_tile + ROWS * (d + 4);
    float* ds_tile = v_tile + ROWS * (d + 4);
    const size_t head_at = static_cast<size_t>(span.first) * at.hidden + draws.head * d;
    load_tile(q_tile, at.q, at.stride, span.start, span.length, d, 1.0f);
    load_tile(dout_tile, dout + head_at, at.hidden, span.start, span.length, d, 1.0f);
    load_tile(k_tile, out + head_at, at.hidden, span.start, span.length, d, 1.0f);
    __syncthreads();
    float row_lse[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t row = span.start + 2 * y + i;
        float dot = 0.0f;
        for (uint32_t column = x; column < d; column += 8) {
            const uint32_t index = (2 * y + i) * (d + 4) + column;
            dot = fmaf(dout_tile[index], k_tile[index], dot);
        }
        delta[i] = row_sum(dot);
        const bool inside = row < span.length;
        row_lse[i] = inside ? lse[static_cast<size_t>(span.first + row) * heads + draws.head] : INF;
        if (inside && x == 0) rows[span.first + row] = make_float2(row_lse[i], delta[i]);
    }
    float4 dq[2][GROUPS];
    clear(dq);
    for (uint32_t key = 0; key < span.length; key += ROWS) {
        __syncthreads();
        load_tile(k_tile, at.k, at.stride, key, span.length, d, at.scale);
        load_tile(v_tile, at.v, at.stride, key, span.length, d, 1.0f);
        draw_tile(keep, draws, span.start, key);
        __syncthreads();
        float s[2][4], dp[2][4];
        products(s, q_tile, k_tile, d);
        products(dp, dout_tile, v_tile, d);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t column = x + 8 * j;
                const float p = key + column < span.length ? expf(s[i][j] - row_lse[i]) : 0.0f;
                const float factor = kept(keep, draws, 2 * y + i, column) ? draws.drop.scale : 0.0f;
                ds_tile[(2 * y + i) * PITCH + column] = p * fmaf(dp[i][j], factor, -delta[i]);
            }
        }
        __syncwarp();  // rows 2 y, 2 y + 1 of ds_tile are written and read by the same warp
        add_weighted(dq, ds_tile, k_tile, d);  // keys are scaled already
    }
    const float factor[2] = {1.0f, 1.0f};
    T* to = dqkv + static_cast<size_t>(span.first) * at.stride + draws.head * d;
    store_pair(to, at.stride, span.start + 2 * y, span.length, dq, factor, d);
}

// dk and dv of 32 keys; scores are computed keys down, queries across.
template <class T>
__device__ inline void plain_dkv(
    const Span span, const Draws draws, const T* qkv, const T* dout, const float2* rows, T* dqkv, uint32_t heads,
    uint32_t d, float* shared) {
    __shared__ unsigned char keep[THREADS];
    __shared__ float2 row_values[ROWS];
    const Head<T> at(span, draws.head, heads, d, qkv);
    const uint32_t y = threadIdx.x / 8, x = threadIdx.x % 8;
    float* k_tile = shared;
    float* v_tile = k_tile + ROWS * (d + 4);
    float* q_tile = v_tile + ROWS * (d + 4);
    float* dout_tile = q_tile + ROWS * (d + 4);
    float* p_tile = dout_tile + ROWS * (d + 4);
    float* ds_tile = p_tile + ROWS * PITCH;
    load_tile(k_tile, at.k, at.stride, span.start, span.length, d, at.scale);
    load_tile(v_tile, at.v, at.stride, span.start, span.length, d, 1.0f);
    float4 dk[2][GROUPS], dv[2][GROUPS];
    clear(dk);
    clear(dv);
    for (uint32_t query = 0; query < span.length; query += ROWS) {
        __syncthreads();
        load_tile(q_tile, at.q, at.stride, query, span.length, d, 1.0f);
        load_tile(
            dout_tile, dout + static_cast<size_t>(span.first) * at.hidden + draws.head * d, at.hidden, query,
            span.length, d, 1.0f);
        if (threadIdx.x < ROWS) {
            const uint32_t row = query + threadIdx.x;
            // A query behind the sequence weighs nothing: e^(s - INF) = 0.
            row_values[threadIdx.x] = row < span.length ? rows[span.first + row] : make_float2(INF, 0.0f);
        }
        draw_tile(keep, draws, query, span.start);
        __syncthreads();
        float s[2][4], dp[2][4];
        products(s, k_tile, q_tile, d);
        products(dp, v_tile, dout_tile, d);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t column = x + 8 * j, index = (2 * y + i) * PITCH + column;
                const float2 row = row_values[column];
                const float p = expf(s[i][j] - row.x);
                const float factor = kept(keep, draws, column, 2 * y + i) ? draws.drop.scale : 0.0f;
                p_tile[index] = p * factor;
                ds_tile[index] = p * fmaf(dp[i][j], factor, -row.y);
            }
        }
        __syncwarp();  // rows 2 y, 2 y + 1 of both tiles are written and read by the same warp
        add_weighted(dv, p_tile, dout_tile, d);
        add_weighted(dk, ds_tile, q_tile, d);
    }
    const float by_scale[2] = {at.scale, at.scale}, by_one[2] = {1.0f, 1.0f};
    T* to = dqkv + static_cast<size_t>(span.first) * at.stride + at.hidden + draws.head * d;
    store_pair(to, at.stride, span.start + 2 * y, span.length, dk, by_scale, d);
    store_pair(to + at.hidden, at.stride, span.start + 2 * y, span.length, dv, by_one, d);
}

// Grids (slots of 32, A), block 128; `rows` [A, capacity] pairs. D is a multiple of 8 up to 128.
#define ATTENTION_PLAIN(T, SUFFIX)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_plain_##SUFFIX(                                  \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const T* qkv, float* lse, T* out, \
        uint32_t heads, uint32_t d, uint32_t threshold, float drop_scale, uint32_t seed, uint32_t site) {            \
        DYN_SHARED(float, shared);                                                                                   \
        Span span;                                                                                                   \
        if (!find_span<ROWS>(cu_seqlens, counts->sequences, blockIdx.x, span)) return;                               \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[span.sequence], counts->epoch, blockIdx.y}; \
        plain_forward<T>(span, draws, qkv, lse, out, heads, d, shared);                                              \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_plain_dq_##SUFFIX(                               \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const T* qkv, const float* lse,   \
        const T* out, const T* dout, float* rows, T* dqkv, uint32_t heads, uint32_t d, uint32_t capacity,            \
        uint32_t threshold, float drop_scale, uint32_t seed, uint32_t site) {                                        \
        DYN_SHARED(float, shared);                                                                                   \
        const uint32_t head = blockIdx.y;                                                                            \
        zero_behind<T, THREADS>(dqkv, counts->tokens, capacity, 3 * heads * d, head * d, d);                         \
        Span span;                                                                                                   \
        if (!find_span<ROWS>(cu_seqlens, counts->sequences, blockIdx.x, span)) return;                               \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[span.sequence], counts->epoch, head};      \
        float2* head_rows = reinterpret_cast<float2*>(rows) + static_cast<size_t>(head) * capacity;                  \
        plain_dq<T>(span, draws, qkv, lse, out, dout, head_rows, dqkv, heads, d, shared);                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_plain_dkv_##SUFFIX(                              \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* samples, const T* qkv, const T* dout,      \
        const float* rows, T* dqkv, uint32_t heads, uint32_t d, uint32_t capacity, uint32_t threshold,               \
        float drop_scale, uint32_t seed, uint32_t site) {                                                            \
        DYN_SHARED(float, shared);                                                                                   \
        const uint32_t head = blockIdx.y;                                                                            \
        zero_behind<T, THREADS>(dqkv, counts->tokens, capacity, 3 * heads * d, (heads + head) * d, d);               \
        zero_behind<T, THREADS>(dqkv, counts->tokens, capacity, 3 * heads * d, (2 * heads + head) * d, d);           \
        Span span;                                                                                                   \
        if (!find_span<ROWS>(cu_seqlens, counts->sequences, blockIdx.x, span)) return;                               \
        const Draws draws = {{threshold, drop_scale, seed, site}, samples[span.sequence], counts->epoch, head};      \
        const float2* head_rows = reinterpret_cast<const float2*>(rows) + static_cast<size_t>(head) * capacity;      \
        plain_dkv<T>(span, draws, qkv, dout, head_rows, dqkv, heads, d, shared);                                     \
    }
ATTENTION_PLAIN(float, f32)
ATTENTION_PLAIN(bf16, bf16)
