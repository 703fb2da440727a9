// What the attention kernels share: which queries or keys a block works on, swizzled tiles of rows in
// shared memory and how fragments are read from them, and the dropout of a tile as one bit an element.
//
// Work list. Sequences differ in length and a launch must have the same shape for every pack, so a block
// finds its tile itself. Sequence s owns the slots from cu_seqlens[s] / R + s on (R rows a tile): the
// expression ascends, leaves room for ceil(length / R) tiles and at most one empty slot a sequence, and
// needs no list from the host. The grid is capacity(T) / R + capacity(S) slots by A heads; a block finds
// the sequence of its slot with two probes of 32 for up to 1,024 sequences. Batches that put their long
// sequences first have them started first.
//
// Shared tiles. A row of D bf16 is D / 8 chunks of 16 bytes; chunk c of row r lies at c ^ f(r) with
// f(r) = r % 8 (D = 64) or r / 2 % 4 (D = 32). The eight rows that one ldmatrix phase reads, and the
// chunks that eight neighbouring threads write, then lie in eight different groups of four banks.
#pragma once

#include "common.cuh"
#include "intrinsics.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

// Rows of one sequence that a block works on.
struct Span {
    uint32_t first;     // row of the sequence's first token in [T, ...]
    uint32_t length;    // tokens of the sequence
    uint32_t start;     // first query (or key) of the tile, within the sequence
    uint32_t sequence;
};

// The tile of `slot`; false when there is none. Called by whole warps.
template <uint32_t ROWS>
__device__ inline bool find_span(const uint32_t* cu_seqlens, uint32_t sequences, uint32_t slot, Span& span) {
    if (sequences == 0) return false;
    const uint32_t lane = threadIdx.x % 32;
    uint32_t low = 0, high = sequences;  // the slot belongs to one of [low, high)
    while (high - low > 1) {
        const uint32_t step = (high - low + 31) / 32;
        const uint32_t probe = low + lane * step;
        const bool reached = probe < high && cu_seqlens[probe] / ROWS + probe <= slot;
        const uint32_t last = __popc(__ballot_sync(FULL_WARP, reached)) - 1;  // lane 0 always reaches
        low += last * step;
        high = min(high, low + step);
    }
    span.sequence = low;
    span.first = cu_seqlens[low];
    span.length = cu_seqlens[low + 1] - span.first;
    span.start = (slot - (span.first / ROWS + low)) * ROWS;
    return span.start < span.length;
}

// Zeros in rows [counts->tokens, capacity) of columns [column, column + width) of dqkv [T, 3H]: products
// at capacity must add nothing. The grid's blocks of one head share the rows.
template <class T, int THREADS>
__device__ inline void zero_behind(
    T* dqkv, uint32_t tokens, uint32_t capacity, uint32_t stride, uint32_t column, uint32_t width) {
    const uint32_t chunks = width / Vec<T>::WIDTH;
    for (uint32_t row = tokens + blockIdx.x; row < capacity; row += gridDim.x) {
        for (uint32_t chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            T* to = dqkv + static_cast<size_t>(row) * stride + column + chunk * Vec<T>::WIDTH;
            store_raw(to, make_uint4(0, 0, 0, 0));
        }
    }
}

// ---- shared tiles ------------------------------------------------------------------------------

// Where chunk `chunk` of row `row` lies in a tile of D bf16 a row, in units of 16 bytes.
template <int D> __device__ inline uint32_t swizzled(uint32_t row, uint32_t chunk) {
    static_assert(D == 32 || D == 64, "the swizzle is written for rows of 64 or 128 bytes");
    return D == 64 ? row * 8 + (chunk ^ (row & 7)) : row * 4 + (chunk ^ (row >> 1 & 3));
}

// Starts the copies of a tile [ROWS, D] from rows `stride` elements apart; zeros from row `valid` on.
template <int D, int ROWS, int THREADS>
__device__ inline void copy_tile(uint4* tile, const bf16* from, uint32_t stride, uint32_t valid) {
    constexpr uint32_t CHUNKS = D / 8, STEP = THREADS / CHUNKS;  // rows that all threads copy at once
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "every thread copies one chunk of every STEP-th row");
    const uint32_t first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const bf16* source = from + static_cast<size_t>(first) * stride + chunk * 8;
    uint4* to = tile + swizzled<D>(first, chunk);  // STEP is a multiple of the swizzle's period
#pragma unroll
    for (uint32_t row = 0; row < ROWS; row += STEP) {
        cp_async_16(to + row * CHUNKS, source, first + row < valid);  // where not valid, nothing is read
        source += static_cast<size_t>(STEP) * stride;
    }
}

// A fragment: rows row .. row + 16, columns 16 k .. 16 k + 16 of a tile.
template <int D> __device__ inline void load_a(uint32_t (&a)[4], const uint4* tile, uint32_t row, uint32_t k) {
    const uint32_t lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + swizzled<D>(row + lane % 16, 2 * k + lane / 16));
}

// Two B fragments of the tile transposed, Bᵀ = rows: columns n = tile rows row .. row + 8 (b[0]) and
// row + 8 .. row + 16 (b[1]), depth = tile columns 16 k .. 16 k + 16.
template <int D>
__device__ inline void load_b(uint32_t (&b)[2][2], const uint4* tile, uint32_t row, uint32_t k) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4(r, tile + swizzled<D>(row + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// Two B fragments of the tile as it is: depth = tile rows row .. row + 16, columns n = tile columns
// 16 k .. 16 k + 8 (b[0]) and the next eight (b[1]).
template <int D>
__device__ inline void load_b_rows(uint32_t (&b)[2][2], const uint4* tile, uint32_t row, uint32_t k) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + swizzled<D>(row + lane % 16, 2 * k + lane / 16));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// Two neighbouring C fragments [16, 8] as one A fragment [16, 16]: no lane needs another's values.
__device__ inline void as_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = cvt_bf16x2(left[0], left[1]), a[1] = cvt_bf16x2(left[2], left[3]);
    a[2] = cvt_bf16x2(right[0], right[1]), a[3] = cvt_bf16x2(right[2], right[3]);
}

// Word j of lane t of a quad goes to word t of lane j.
__device__ inline void transpose_quad(uint32_t (&w)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(FULL_WARP, odd ? w[i] : w[i + 1], 1);
        (odd ? w[i] : w[i + 1]) = other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t other = __shfl_xor_sync(FULL_WARP, upper ? w[i] : w[i + 2], 2);
        (upper ? w[i] : w[i + 2]) = other;
    }
}

// Writes 16 rows of D f32 accumulators times `low` (rows g) and `high` (rows g + 8) as bf16, 16 bytes a
// lane: rows `row` + g and + 8 of `to`, those below `rows` only.
template <int D>
__device__ inline void store_rows(
    bf16* to, uint32_t stride, uint32_t row, uint32_t rows, const float (&c)[D / 8][4], float low, float high) {
    const uint32_t group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t r = row + group + 8 * half;
        const float factor = half ? high : low;
#pragma unroll
        for (int n = 0; n < D / 8; n += 4) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) w[i] = cvt_bf16x2(c[n + i][2 * half] * factor, c[n + i][2 * half + 1] * factor);
            transpose_quad(w);
            if (r < rows) store_raw(to + static_cast<size_t>(r) * stride + (n + t) * 8, make_uint4(w[0], w[1], w[2], w[3]));
        }
    }
}

// ---- dropout -----------------------------------------------------------------------------------

// The numbers of one head of one sequence.
struct Draws {
    Dropout drop;
    uint32_t sample, epoch, head;
};

// Bit e of the result: key 8 `block` + e of `query` is kept. A half is below the threshold exactly when
// the word, shifted so that the half comes first, is below the threshold in the same place.
__device__ inline uint32_t keep_bits(const Draws& draws, uint32_t query, uint32_t block) {
    const uint4 words = dropout_bits(draws.drop, draws.sample, query | block << 16, draws.epoch, draws.head);
    const uint32_t bound = draws.drop.threshold << 16;
    uint32_t keep = (words.x << 16) >= bound ? 1u : 0u;
    keep |= words.x >= bound ? 2u : 0u;
    keep |= (words.y << 16) >= bound ? 4u : 0u;
    keep |= words.y >= bound ? 8u : 0u;
    keep |= (words.z << 16) >= bound ? 16u : 0u;
    keep |= words.z >= bound ? 32u : 0u;
    keep |= (words.w << 16) >= bound ? 64u : 0u;
    keep |= words.w >= bound ? 128u : 0u;
    return keep;
}

// One step of a transposition of bit matrices held a row a lane: cells of `SHIFT` bits whose index has
// this bit clear (`MASK`) change places with the partner's `DISTANCE` lanes away.
template <uint32_t DISTANCE, uint32_t SHIFT, uint32_t MASK> __device__ inline uint32_t swap_bits(uint32_t x) {
    const uint32_t other = __shfl_xor_sync(FULL_WARP, x, DISTANCE);
    return (threadIdx.x & DISTANCE) ? (x & ~MASK) | (other >> SHIFT & MASK) : (x & MASK) | ((other & MASK) << SHIFT);
}

// Keep bits of C fragments with rows = queries, columns = keys: 16 queries from `query` on by 64 keys
// from key block `block` on. Eight keys of a query are one Philox block but lie in four lanes, so each
// lane draws four blocks and the lanes of a quad exchange bits: two shuffles instead of twelve more
// blocks. Element c[2 half + e] of fragment n = 4 u + v is bit 16 half + 8 u + 2 v + e.
__device__ inline uint32_t keep_rows(const Draws& draws, uint32_t query, uint32_t block) {
    const uint32_t group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint32_t keep = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        keep |= keep_bits(draws, query + group + i / 2 * 8, block + i % 2 * 4 + t) << 8 * i;
    }
    keep = swap_bits<1, 2, 0x33333333u>(keep);
    return swap_bits<2, 4, 0x0f0f0f0fu>(keep);
}
__device__ constexpr uint32_t row_bit(int n, int c) { return 1u << (16 * (c / 2) + 8 * (n / 4) + 2 * (n % 4) + c % 2); }

// The same with rows = keys, columns = queries: 16 keys from key block `block` on by 64 queries from
// `query` on. A Philox block lies in eight lanes here; each lane draws one block for every 16 queries.
// Element c[2 half + e] of fragment n = 2 i + v is bit 8 i + 4 half + 2 v + e.
__device__ inline uint32_t keep_columns(const Draws& draws, uint32_t query, uint32_t block) {
    const uint32_t group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint32_t keep = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t q = query + 16 * i + group / 2 % 2 * 8 + 2 * t + group % 2;
        keep |= keep_bits(draws, q, block + group / 4) << 8 * i;
    }
    keep = swap_bits<4, 1, 0x55555555u>(keep);
    keep = swap_bits<8, 2, 0x33333333u>(keep);
    return swap_bits<16, 4, 0x0f0f0f0fu>(keep);
}
