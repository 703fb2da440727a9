// MLM masking on the device, bit for bit what `src/engine/cpu/mask.rs` does: which tokens are chosen,
// what becomes of them, and the list of the chosen rows in ascending order.
//
// chosen(row) = philox((seed, 1), (sample, decider, epoch, 0))[0] < threshold, for tokens that are
// neither [CLS] nor [SEP] and lie in a segment of the rule; `decider` is the token's position, or with
// whole_word that of the first piece of its word: a piece that continues a word looks back until a
// piece that does not, the start of the sequence or a special token.
// A chosen token becomes [MASK] (80 %), a token of the vocabulary (10 %) or stays (10 %).
//
// Layouts: ids, positions, segments, samples [T]; continues [V]; chosen [T / 32] one bit a row;
// masked_rows, masked_labels [room]; found [1], the number of chosen tokens. Bytes: 16 T read, T / 8
// written and read, 12 M written: it is the launch that costs (0.3 MB at T = 16,384).
//
// Two launches, because a piece looks back at ids that the second one replaces:
//   mask_choose   one thread a row; a warp's ballot is one word of `chosen`
//   mask_compact  one thread a row; a row's place in the list is the number of bits before it: each
//                 block counts the words before its own (2 KB at most) instead of waiting for the
//                 others, so there is no scan over blocks, no atomic and one possible order.
// Tried: one block for everything needs no second launch, and one multiprocessor then draws 16,384
// Philox blocks alone.
#include "common.cuh"

constexpr uint32_t BLOCK = 256;
constexpr uint32_t WARPS = BLOCK / 32;

__device__ inline void choose(
    const Counts* counts, const uint32_t* __restrict__ ids, const uint32_t* __restrict__ positions,
    const uint32_t* __restrict__ segments, const uint32_t* __restrict__ samples, const uint32_t* __restrict__ continues,
    uint32_t* __restrict__ chosen, uint32_t seed, uint32_t threshold, uint32_t allowed_segments, uint32_t whole_word,
    uint32_t vocab, uint32_t cls, uint32_t sep) {
    const uint32_t row = blockIdx.x * BLOCK + threadIdx.x;
    bool mine = false;
    if (row < counts->tokens) {
        const uint32_t id = ids[row];
        if (id != cls && id != sep && (allowed_segments >> segments[row] & 1u)) {
            uint32_t first = row;
            while (whole_word && first > 0) {
                const uint32_t piece = ids[first];
                if (piece >= vocab || continues[piece] != 1 || positions[first] == 0) break;
                const uint32_t before = ids[first - 1];
                if (before == cls || before == sep) break;
                --first;
            }
            mine = philox(seed, PURPOSE_MASK, samples[first], positions[first], counts->epoch, 0).x < threshold;
        }
    }
    const uint32_t word = __ballot_sync(FULL_WARP, mine);
    if (threadIdx.x % 32 == 0) chosen[row / 32] = word;
}

__device__ inline void compact(
    const Counts* counts, const uint32_t* __restrict__ chosen, uint32_t* __restrict__ ids,
    const uint32_t* __restrict__ positions, const uint32_t* __restrict__ samples, uint32_t* __restrict__ masked_rows,
    uint32_t* __restrict__ masked_labels, uint32_t* __restrict__ found, uint32_t room, uint32_t seed, uint32_t vocab,
    uint32_t mask) {
    __shared__ uint32_t before[WARPS];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t row = blockIdx.x * BLOCK + threadIdx.x;
    // chosen rows of the blocks before, and of this block's warps before
    uint32_t bits = 0;
    for (uint32_t word = threadIdx.x; word < blockIdx.x * WARPS; word += BLOCK) bits += __popc(chosen[word]);
    const uint32_t blocks_before = block_sum<WARPS>(bits, before);
    uint32_t at = blocks_before;
    for (uint32_t word = 0; word < warp; ++word) at += __popc(chosen[blockIdx.x * WARPS + word]);
    const uint32_t mine = chosen[row / 32];
    at += __popc(mine & ((1u << lane) - 1u));
    if (blockIdx.x + 1 == gridDim.x && threadIdx.x + 1 == BLOCK) found[0] = at + (mine >> lane & 1u);
    if ((mine >> lane & 1u) == 0 || at >= room) return;
    const uint32_t id = ids[row];
    masked_rows[at] = row;
    masked_labels[at] = id;
    const uint4 draw = philox(seed, PURPOSE_MASK, samples[row], positions[row], counts->epoch, 0);
    if (draw.y < 3435973837u) {  // 0.8 * 2^32
        ids[row] = mask;
    } else if (draw.y < 3865470566u) {  // 0.9 * 2^32
        ids[row] = static_cast<uint32_t>(static_cast<uint64_t>(draw.z) * vocab >> 32);
    }
}

// Ids know no type; the names follow the engine's.
#define KERNELS(TYPE)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK) mask_choose_##TYPE(                                            \
        const Counts* counts, const uint32_t* ids, const uint32_t* positions, const uint32_t* segments,                \
        const uint32_t* samples, const uint32_t* continues, uint32_t* chosen, uint32_t seed, uint32_t threshold,       \
        uint32_t allowed_segments, uint32_t whole_word, uint32_t vocab, uint32_t cls, uint32_t sep) {                  \
        choose(counts, ids, positions, segments, samples, continues, chosen, seed, threshold, allowed_segments,        \
               whole_word, vocab, cls, sep);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK) mask_compact_##TYPE(                                           \
        const Counts* counts, const uint32_t* chosen, uint32_t* ids, const uint32_t* positions,                        \
        const uint32_t* samples, uint32_t* masked_rows, uint32_t* masked_labels, uint32_t* found, uint32_t room,       \
        uint32_t seed, uint32_t vocab, uint32_t mask) {                                                                \
        compact(counts, chosen, ids, positions, samples, masked_rows, masked_labels, found, room, seed, vocab, mask);  \
    }

KERNELS(f32)
KERNELS(bf16)
