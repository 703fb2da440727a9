// Gradients of the embedding tables: word[id] += sum of d over the rows with that id, position and
// segment likewise. The order of every sum is fixed and no atomic is used: rows of one id are added in
// pack order, in runs of at most 32, and the runs in order.
//
// Layouts: d [T, H] in T (what `embed_backward` left); ids, segments [T]; cu_seqlens [S + 1]; entries
// and sorted [T] pairs (id, row); runs [chunks, 2, H] f32; the tables' gradients [V, H], [P, H], [2, H]
// f32, added to.
//
// word, three launches:
//   embed_buckets  sorts (id, row). 128 or more blocks; each owns a range of at most 1024 ids, reads all
//                  ids, counts those below its range (that is where its part of the list starts) and
//                  writes its own rows there in order; then one warp an id picks that id's rows, in
//                  order. No block waits for another. Reads 2 * 4 T bytes a block: 17 MB of L2 at
//                  T = 16,384, where a radix sort makes three passes of three launches each.
//   embed_words    one block for 32 sorted entries: a thread owns a 16-byte vector of columns and walks
//                  the entries, four rows in flight. A run of one id that lies within the block is
//                  added to the table by it alone; one that continues over the block's ends goes to
//                  `runs`: [0] what continues from before, [1] what begins here.
//   embed_joins    the blocks where such a run begins add its parts in order.
// That makes [MASK] (an eighth of all tokens) and [CLS] no slower than others: 62 blocks for 2,000 rows.
// position and segment, one launch: position p occurs at row cu_seqlens[s] + p of every sequence that is
// long enough; one block a position (striding), warp w takes sequences w, w + 8, ...; the sums of the
// two segments are kept apart, so the segment table comes for free (through `add_partials`).
//
// Bytes (bf16): d is read twice, 4 H T, and each touched row of a table is read and written once.
// Tried on paper: one block a distinct id (llm.c's wte backward) leaves [MASK]'s 2,000 rows to one
// multiprocessor, about 50 microseconds at an H100's share of bandwidth; all pairs compared for the
// ranks is T^2 = 2.7e8 comparisons, about 40 microseconds, and grows with the square.
#include "common.cuh"

constexpr uint32_t CHUNK = 32;         // sorted entries of one block
constexpr uint32_t MOST_IDS = 1024;    // of one bucket
constexpr uint32_t SORT_BLOCK = 512;
constexpr uint32_t SORT_WARPS = SORT_BLOCK / 32;
constexpr uint32_t WORD_BLOCK = 256;
constexpr uint32_t PLACE_BLOCK = 256;
constexpr uint32_t PLACE_WARPS = PLACE_BLOCK / 32;

__device__ inline void embed_buckets(
    const Counts* counts, const uint32_t* __restrict__ ids, uint2* entries, uint2* __restrict__ sorted, uint32_t vocab) {
    __shared__ uint32_t below[SORT_WARPS], inside[SORT_WARPS], starts[MOST_IDS];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, tokens = counts->tokens;
    const uint32_t low = static_cast<uint32_t>(static_cast<uint64_t>(vocab) * blockIdx.x / gridDim.x);
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(vocab) * (blockIdx.x + 1) / gridDim.x);
    // each warp's rows are contiguous, so that warps in order are rows in order
    const uint32_t share = (tokens + SORT_BLOCK - 1) / SORT_BLOCK * 32;
    const uint32_t first = warp * share, end = first + share < tokens ? first + share : tokens;

    uint32_t smaller = 0, mine = 0;
#pragma unroll 4
    for (uint32_t row = first + lane; row < end; row += 32) {
        const uint32_t id = ids[row];
        smaller += id < low;
        mine += id >= low && id < high;
    }
    smaller = warp_sum(smaller), mine = warp_sum(mine);
    if (lane == 0) below[warp] = smaller, inside[warp] = mine;
    for (uint32_t i = threadIdx.x; i < high - low; i += SORT_BLOCK) starts[i] = 0;
    __syncthreads();
    uint32_t start = 0, count = 0, at = 0;
    for (uint32_t other = 0; other < SORT_WARPS; ++other) {
        start += below[other], count += inside[other];
        at += other < warp ? inside[other] : 0;
    }
    at += start;
    for (uint32_t row = first + lane; row - lane < end; row += 32) {
        const uint32_t id = row < end ? ids[row] : 0xffffffffu;
        const bool belongs = id >= low && id < high;
        const uint32_t bits = __ballot_sync(FULL_WARP, belongs);
        if (belongs) {
            entries[at + __popc(bits & ((1u << lane) - 1u))] = make_uint2(id, row);
            atomicAdd(&starts[id - low], 1u);  // a count: its value does not depend on the order
        }
        at += __popc(bits);
    }
    __syncthreads();
    if (warp == 0) {  // counts become places in the bucket
        uint32_t total = 0;
        for (uint32_t i = lane; i - lane < high - low; i += 32) {
            const uint32_t own = i < high - low ? starts[i] : 0;
            uint32_t sum = own;
#pragma unroll
            for (uint32_t offset = 1; offset < 32; offset *= 2) {
                const uint32_t left = __shfl_up_sync(FULL_WARP, sum, offset);
                sum += lane >= offset ? left : 0;
            }
            if (i < high - low) starts[i] = total + sum - own;
            total += __shfl_sync(FULL_WARP, sum, 31);
        }
    }
    __syncthreads();
    for (uint32_t id = low + warp; id < high; id += SORT_WARPS) {
        uint32_t to = starts[id - low];
        const uint32_t past = id + 1 < high ? starts[id + 1 - low] : count;
        for (uint32_t i = lane; to < past; i += 32) {
            const uint2 entry = i < count ? entries[start + i] : make_uint2(0xffffffffu, 0);
            const uint32_t bits = __ballot_sync(FULL_WARP, entry.x == id);
            if (entry.x == id) sorted[start + to + __popc(bits & ((1u << lane) - 1u))] = entry;
            to += __popc(bits);
        }
    }
}

template <class T>
__device__ inline void embed_words(
    const Counts* counts, const uint2* __restrict__ sorted, const T* __restrict__ d, float* __restrict__ runs,
    float* __restrict__ table, uint32_t hidden) {
    constexpr uint32_t WIDTH = Vec<T>::WIDTH, FLIGHT = 4;
    __shared__ uint2 entry[CHUNK + 2];  // entry[1 + i]; the neighbours on both sides
    const uint32_t tokens = counts->tokens, first = blockIdx.x * CHUNK;
    if (first >= tokens) return;
    const uint32_t n = tokens - first < CHUNK ? tokens - first : CHUNK;
    if (threadIdx.x < CHUNK + 2) {
        const uint32_t at = first + threadIdx.x;  // one further than the entry
        entry[threadIdx.x] = at > 0 && at <= tokens ? sorted[at - 1] : make_uint2(0xffffffffu, 0);
    }
    __syncthreads();
    for (uint32_t c = threadIdx.x * WIDTH; c < hidden; c += WORD_BLOCK * WIDTH) {
        float sum[WIDTH] = {};
        bool from_before = entry[0].x == entry[1].x;
        for (uint32_t i = 0; i < n; i += FLIGHT) {
            uint4 raw[FLIGHT];
#pragma unroll
            for (uint32_t k = 0; k < FLIGHT; ++k)
                raw[k] = i + k < n ? load_raw(d + static_cast<uint64_t>(entry[1 + i + k].y) * hidden + c) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (uint32_t k = 0; k < FLIGHT; ++k) {
                if (i + k >= n) break;
                float v[WIDTH];
                unpack(raw[k], v);
#pragma unroll
                for (uint32_t j = 0; j < WIDTH; ++j) sum[j] += v[j];
                const bool ends = entry[1 + i + k].x != entry[2 + i + k].x;
                if (!ends && i + k + 1 < n) continue;
                const bool own = ends && !from_before;
                const uint64_t place = own ? static_cast<uint64_t>(entry[1 + i + k].x) * hidden
                                           : (static_cast<uint64_t>(blockIdx.x) * 2 + (from_before ? 0 : 1)) * hidden;
                float4* to = reinterpret_cast<float4*>((own ? table : runs) + place + c);
#pragma unroll
                for (uint32_t j = 0; j < WIDTH; j += 4) {
                    const float4 old = own ? to[j / 4] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    to[j / 4] = make_float4(old.x + sum[j], old.y + sum[j + 1], old.z + sum[j + 2], old.w + sum[j + 3]);
                    sum[j] = sum[j + 1] = sum[j + 2] = sum[j + 3] = 0.0f;
                }
                from_before = false;
            }
        }
    }
}

__device__ inline void embed_joins(
    const Counts* counts, const uint2* __restrict__ sorted, const float* __restrict__ runs, float* __restrict__ table,
    uint32_t hidden) {
    const uint32_t tokens = counts->tokens, first = blockIdx.x * CHUNK, next = first + CHUNK;
    if (next >= tokens) return;
    const uint32_t id = sorted[next - 1].x;
    if (sorted[next].x != id) return;                        // nothing continues
    if (first > 0 && sorted[first - 1].x == id) return;      // it began before
    uint32_t last = blockIdx.x + 1;                          // the last block of the run
    while ((last + 1) * CHUNK < tokens && sorted[(last + 1) * CHUNK].x == id) ++last;
    for (uint32_t c = threadIdx.x * 4; c < hidden; c += WORD_BLOCK * 4) {
        float4 sum = *reinterpret_cast<const float4*>(runs + (static_cast<uint64_t>(blockIdx.x) * 2 + 1) * hidden + c);
#pragma unroll 4
        for (uint32_t block = blockIdx.x + 1; block <= last; ++block) {
            const float4 more = *reinterpret_cast<const float4*>(runs + static_cast<uint64_t>(block) * 2 * hidden + c);
            sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
        }
        float4* to = reinterpret_cast<float4*>(table + static_cast<uint64_t>(id) * hidden + c);
        const float4 old = *to;
        *to = make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w);
    }
}

template <class T>
__device__ inline void embed_places(
    const Counts* counts, const uint32_t* __restrict__ cu_seqlens, const uint32_t* __restrict__ segments,
    const T* __restrict__ d, float* __restrict__ table, float* __restrict__ partials, uint32_t hidden) {
    constexpr uint32_t WIDTH = Vec<T>::WIDTH, SLAB = 32 * WIDTH;
    __shared__ float scratch[PLACE_WARPS];
    __shared__ float shared[PLACE_WARPS][2][WIDTH][32 + 32 / WIDTH];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sequences = counts->sequences;
    const uint32_t column = blockIdx.y * SLAB + lane * WIDTH;
    // lengths below 2^24 are exact in f32
    float most = 0.0f;
    for (uint32_t s = threadIdx.x; s < sequences; s += PLACE_BLOCK)
        most = fmaxf(most, static_cast<float>(cu_seqlens[s + 1] - cu_seqlens[s]));
    const uint32_t longest = static_cast<uint32_t>(block_max<PLACE_WARPS>(most, scratch));
    // after the exchange, this thread's column of the slab
    const uint32_t slot = threadIdx.x, at = blockIdx.y * SLAB + slot;
    const bool writes = slot < SLAB && at < hidden;
    float total[2] = {};
    for (uint32_t place = blockIdx.x; place < longest; place += gridDim.x) {
        float sum[2][WIDTH] = {};
        if (column < hidden) {
#pragma unroll 4
            for (uint32_t s = warp; s < sequences; s += PLACE_WARPS) {
                const uint32_t row = cu_seqlens[s] + place;
                if (row >= cu_seqlens[s + 1]) continue;
                float v[WIDTH];
                load_vec(d + static_cast<uint64_t>(row) * hidden + column, v);
                const bool second = segments[row] != 0;
#pragma unroll
                for (uint32_t j = 0; j < WIDTH; ++j) sum[0][j] += second ? 0.0f : v[j], sum[1][j] += second ? v[j] : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < WIDTH; ++j) shared[warp][0][j][lane] = sum[0][j], shared[warp][1][j][lane] = sum[1][j];
        __syncthreads();
        if (writes) {
            float both[2];
#pragma unroll
            for (int segment = 0; segment < 2; ++segment) {
                both[segment] = shared[0][segment][slot % WIDTH][slot / WIDTH];
#pragma unroll
                for (uint32_t other = 1; other < PLACE_WARPS; ++other)
                    both[segment] += shared[other][segment][slot % WIDTH][slot / WIDTH];
                total[segment] += both[segment];
            }
            table[static_cast<uint64_t>(place) * hidden + at] += both[0] + both[1];
        }
        __syncthreads();
    }
    if (!writes) return;
    partials[static_cast<uint64_t>(blockIdx.x) * 2 * hidden + at] = total[0];
    partials[(static_cast<uint64_t>(blockIdx.x) * 2 + 1) * hidden + at] = total[1];
}

#define KERNELS(T, TYPE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(SORT_BLOCK) embed_buckets_##TYPE(                                    \
        const Counts* counts, const uint32_t* ids, uint2* entries, uint2* sorted, uint32_t vocab) {                   \
        embed_buckets(counts, ids, entries, sorted, vocab);                                                           \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(WORD_BLOCK) embed_words_##TYPE(                                      \
        const Counts* counts, const uint2* sorted, const T* d, float* runs, float* table, uint32_t hidden) {          \
        embed_words<T>(counts, sorted, d, runs, table, hidden);                                                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(WORD_BLOCK) embed_joins_##TYPE(                                      \
        const Counts* counts, const uint2* sorted, const float* runs, float* table, uint32_t hidden) {                \
        embed_joins(counts, sorted, runs, table, hidden);                                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(PLACE_BLOCK, 4) embed_places_##TYPE(                                    \
        const Counts* counts, const uint32_t* cu_seqlens, const uint32_t* segments, const T* d, float* table,         \
        float* partials, uint32_t hidden) {                                                                           \
        embed_places<T>(counts, cu_seqlens, segments, d, table, partials, hidden);                                    \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
