// Softmax cross-entropy over the vocabulary, in place (MLM).
//
//   x = logits + bias    loss = log(sum(e^x)) - x[label]    logits = scale (softmax(x) - onehot(label))
//
// Layouts: logits [M, V] in T, rows V apart, whatever V is (BERT's 30,522 is no multiple of 8: rows start at
// any multiple of 4 bytes, so a row's 16-byte vectors start at its first aligned address and the few values
// before and behind them are worked on one a thread); bias [V] in T; results [M, 2] f32 (loss, 1 where the
// label is the arg max, the first one of several); partials [M / 256, V] f32.
//
// `mlm_loss`: one block a row, 512 threads, the row in registers as it was read (8 vectors a thread: 61 KB
// of bf16, V <= 32,760; what is behind is read a second time). One pass finds the largest value and the sum
// (each thread rescales its own sum when its largest value grows), a second over the registers writes the
// gradient. Bytes: 2 V in and 2 V out a row, bias from the caches; at M = 2,458, V = 30,522: 300 MB.
// 512 threads of up to 64 registers, two blocks an SM: one row's sums are formed while another's loads are
// on their way. Rows behind M become zeros, so that products at capacity add nothing.
// `mlm_bias_partials`: column sums of the gradient over 256 rows a block, two columns a thread; with
// `add_partials` (column_sum.cu) the gradient of the bias. Reads the gradient again, 150 MB of the above
// from memory: sums in registers of `mlm_loss` would need rows and columns that stay with their threads,
// which the rows' moving alignment forbids for 16-byte vectors.
// `mlm_stats`: one block adds the results to the step's statistics, in f64 and a fixed order.
#include "common.cuh"
#include "intrinsics.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int HELD = 8;  // vectors a thread keeps in registers
constexpr uint32_t ROWS_PER_PARTIAL = 256;
constexpr int SUM_THREADS = 256;
constexpr float LOG2_E = 1.44269504088896341f;

// e^x: as exact as the type of the result can show.
template <class T> __device__ inline float exponential(float x);
template <> __device__ inline float exponential<float>(float x) { return expf(x); }
template <> __device__ inline float exponential<bf16>(float x) { return exp2_approx(x * LOG2_E); }

// Two neighbouring values of one 4-byte word.
__device__ inline void load_pair(const bf16* from, float& low, float& high) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
    low = low_bf16(pair), high = high_bf16(pair);
}

// One row of V values: `head` values up to the first multiple of 16 bytes, whole vectors, and the rest. The
// fewer than two vectors of values outside the whole ones, the edges, are worked on one a thread.
template <class T> struct Row {
    static constexpr int WIDTH = Vec<T>::WIDTH;
    T* data;
    int head, vectors, edges;

    __device__ Row(T* logits, uint32_t row, uint32_t vocab) {
        const size_t start = static_cast<size_t>(row) * vocab;
        data = logits + start;
        head = static_cast<int>((WIDTH - start % WIDTH) % WIDTH);
        head = min(head, static_cast<int>(vocab));
        vectors = (static_cast<int>(vocab) - head) / WIDTH;
        edges = static_cast<int>(vocab) - vectors * WIDTH;
    }
    __device__ int column(int vector) const { return head + vector * WIDTH; }
    __device__ int edge(int i) const { return i < head ? i : i + vectors * WIDTH; }
    __device__ uint4 load(int vector) const { return load_raw(data + column(vector)); }
    __device__ void store(int vector, const float (&x)[WIDTH]) const { store_vec(data + column(vector), x); }
};

// x = raw + bias. The bias starts at a multiple of 16 bytes, so that at an even column two of its values are
// one aligned word.
__device__ inline void add_bias(float (&x)[4], const uint4& raw, const float* bias, int) {
    unpack(raw, x);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] += bias[j];
}
__device__ inline void add_bias(float (&x)[8], const uint4& raw, const bf16* bias, int column) {
    unpack(raw, x);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        float low, high;
        if (column % 2 == 0) {
            load_pair(bias + j, low, high);
        } else {
            low = to_float(bias[j]), high = to_float(bias[j + 1]);
        }
        x[j] += low, x[j + 1] += high;
    }
}

// Largest value, its first column and the sum of e^(x - largest) over what was seen.
struct Online {
    float top = -INF, sum = 0.0f;
    int at = 0x7fffffff;

    template <class T, int WIDTH> __device__ void see(const float (&x)[WIDTH], int first) {
        float top_here = x[0];
        int at_here = first;
#pragma unroll
        for (int j = 1; j < WIDTH; ++j) {
            if (x[j] > top_here) top_here = x[j], at_here = first + j;
        }
        if (top_here > top || (top_here == top && at_here < at)) {
            sum *= exponential<T>(top - top_here);
            top = top_here, at = at_here;
        }
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum += exponential<T>(x[j] - top);
    }

    // The same over the block, in every thread.
    template <class T> __device__ void combine(float* floats, int* ints) {
        const float own = top;
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) {
            take(__shfl_xor_sync(FULL_WARP, top, offset), __shfl_xor_sync(FULL_WARP, at, offset));
        }
        if (threadIdx.x % 32 == 0) floats[threadIdx.x / 32] = top, ints[threadIdx.x / 32] = at;
        __syncthreads();
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) take(floats[warp], ints[warp]);
        __syncthreads();
        sum = block_sum<WARPS>(own == -INF ? sum : sum * exponential<T>(own - top), floats);
    }
    __device__ void take(float other, int other_at) {
        if (other > top || (other == top && other_at < at)) top = other, at = other_at;
    }
};

template <class T> __device__ inline void zero_row(const Row<T>& row) {
    const float zeros[Vec<T>::WIDTH] = {};
    for (int i = threadIdx.x; i < row.vectors; i += THREADS) row.store(i, zeros);
    if (static_cast<int>(threadIdx.x) < row.edges) row.data[row.edge(threadIdx.x)] = to_real<T>(0.0f);
}

// What the second pass makes of the first's values.
template <class T> struct Finish {
    float top, factor, scale;
    int label;
    bool train;
    template <int WIDTH> __device__ void apply(float (&x)[WIDTH], int column) const {
        if (!train) return;  // logits stay, with their bias
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            x[j] = exponential<T>(x[j] - top) * factor - (column + j == label ? scale : 0.0f);
        }
    }
};

template <class T>
__device__ inline void mlm_loss(
    const Counts* counts, const uint32_t* labels, const T* bias, T* logits, float* results, uint32_t vocab,
    float weight) {
    constexpr int WIDTH = Vec<T>::WIDTH;
    __shared__ float floats[WARPS];
    __shared__ int ints[WARPS];
    __shared__ float label_value;
    const Row<T> row(logits, blockIdx.x, vocab);
    const int tid = static_cast<int>(threadIdx.x);
    if (blockIdx.x >= counts->masked) {
        if (weight != 0.0f) zero_row(row);
        return;
    }
    const int label = static_cast<int>(labels[blockIdx.x]);
    if (tid == 0) label_value = to_float(row.data[label]) + to_float(bias[label]);
    uint4 held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        if (tid + i * THREADS < row.vectors) held[i] = row.load(tid + i * THREADS);
    }
    Online online;
    float x[WIDTH], edge[1] = {};
    if (tid < row.edges) {
        const int c = row.edge(tid);
        edge[0] = to_float(row.data[c]) + to_float(bias[c]);
        online.see<T>(edge, c);
    }
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int c = row.column(tid + i * THREADS);
        if (tid + i * THREADS >= row.vectors) break;
        add_bias(x, held[i], bias + c, c);
        online.see<T>(x, c);
    }
    for (int at = tid + HELD * THREADS; at < row.vectors; at += THREADS) {
        add_bias(x, row.load(at), bias + row.column(at), row.column(at));
        online.see<T>(x, row.column(at));
    }
    online.combine<T>(floats, ints);  // its barriers also put the reads above before the writes below

    if (tid == 0) {
        results[2 * blockIdx.x] = logf(online.sum) - (label_value - online.top);
        results[2 * blockIdx.x + 1] = online.at == label ? 1.0f : 0.0f;
    }
    const float scale = weight / static_cast<float>(max(counts->step_masked, 1u));
    const Finish<T> finish = {online.top, scale / online.sum, scale, label, weight != 0.0f};
    if (tid < row.edges) {
        finish.apply(edge, row.edge(tid));
        row.data[row.edge(tid)] = to_real<T>(edge[0]);
    }
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int c = row.column(tid + i * THREADS);
        if (tid + i * THREADS >= row.vectors) break;
        add_bias(x, held[i], bias + c, c);
        finish.apply(x, c);
        row.store(tid + i * THREADS, x);
    }
    for (int at = tid + HELD * THREADS; at < row.vectors; at += THREADS) {
        add_bias(x, row.load(at), bias + row.column(at), row.column(at));
        finish.apply(x, row.column(at));
        row.store(at, x);
    }
}

// partials[chunk, v] = sum of column v over the chunk's rows, ascending.
template <class T>
__device__ inline void mlm_bias_partials(const Counts* counts, const T* logits, float* partials, uint32_t vocab) {
    const uint32_t column = 2 * (blockIdx.x * SUM_THREADS + threadIdx.x);
    const uint32_t first = blockIdx.y * ROWS_PER_PARTIAL, last = min(first + ROWS_PER_PARTIAL, counts->masked);
    if (column >= vocab) return;
    const bool pair = column + 1 < vocab;
    float low = 0.0f, high = 0.0f;
#pragma unroll 8
    for (uint32_t row = first; row < last; ++row) {
        const T* from = logits + static_cast<size_t>(row) * vocab + column;
        if (sizeof(T) == 2 && vocab % 2 == 0) {
            float a, b;
            load_pair(reinterpret_cast<const bf16*>(from), a, b);
            low += a, high += b;
        } else {
            low += to_float(from[0]);
            high += pair ? to_float(from[1]) : 0.0f;
        }
    }
    float* to = partials + static_cast<size_t>(blockIdx.y) * vocab + column;
    to[0] = low;
    if (pair) to[1] = high;
}

// sums[0..3] += loss, right ones, rows.
__device__ inline void mlm_stats(const Counts* counts, const float* results, float* sums) {
    __shared__ double scratch[SUM_THREADS / 32];
    double loss = 0.0, right = 0.0;
    for (uint32_t row = threadIdx.x; row < counts->masked; row += SUM_THREADS) {
        loss += results[2 * row], right += results[2 * row + 1];
    }
    loss = block_sum<SUM_THREADS / 32>(loss, scratch);
    right = block_sum<SUM_THREADS / 32>(right, scratch);
    if (threadIdx.x == 0) {
        sums[0] += static_cast<float>(loss);
        sums[1] += static_cast<float>(right);
        sums[2] += static_cast<float>(counts->masked);
    }
}

// mlm_loss: grid (capacity of M), block 512. mlm_bias_partials: grid (V / 512, capacity / 256), block 256.
// mlm_stats: one block of 256.
#define KERNELS(T, SUFFIX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) mlm_loss_##SUFFIX(                                  \
        const Counts* counts, const uint32_t* labels, const T* bias, T* logits, float* results, uint32_t vocab,  \
        float weight) {                                                                                          \
        mlm_loss<T>(counts, labels, bias, logits, results, vocab, weight);                                       \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(SUM_THREADS) mlm_bias_partials_##SUFFIX(                        \
        const Counts* counts, const T* logits, float* partials, uint32_t vocab) {                                \
        mlm_bias_partials<T>(counts, logits, partials, vocab);                                                   \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(SUM_THREADS) mlm_stats_##SUFFIX(                                \
        const Counts* counts, const float* results, float* sums) {                                               \
        mlm_stats(counts, results, sums);                                                                        \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
