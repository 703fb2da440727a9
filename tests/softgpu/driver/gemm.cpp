// The arithmetic of libcublasLt: blocked, packed, vectorised by the compiler, spread over the kernel workers.
//
// Each element of the product is one ascending sum over k within blocks of 256, the blocks added in order: the same bits
// with any number of workers. Epilogues follow the cuBLAS documentation; its GELU is the tanh form.
#include "gemm.h"
#include <algorithm>
#include <cmath>
#include <cstring>

namespace softgpu {
enum : unsigned { AUX = 128, BGRADA = 256, BGRADB = 512 };  // bits and values of cublasLtEpilogue_t
bool known_epilogue(unsigned e) {
    // DEFAULT, BIAS, RELU, RELU_BIAS, GELU, GELU_BIAS, GELU_AUX, GELU_AUX_BIAS, DGELU, DGELU_BGRAD, BGRADA, BGRADB
    for (unsigned known : {1u, 4u, 2u, 6u, 32u, 36u, 160u, 164u, 192u, 208u, 256u, 512u})
        if (e == known) return true;
    return false;
}
static bool reads_bias(unsigned e) { return e == 4 || e == 6 || e == 36 || e == 164; }
static bool writes_bias(unsigned e) { return e == 208 || e == BGRADA || e == BGRADB; }
static bool is_gelu(unsigned e) { return e == 32 || e == 36 || e == 160 || e == 164; }
static bool is_gelu_gradient(unsigned e) { return e == 192 || e == 208; }

static float from_bf16(uint16_t x) {
    uint32_t u = static_cast<uint32_t>(x) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (f != f) return static_cast<uint16_t>(u >> 16 | 0x40);
    return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static float get(const void* data, int type, size_t i) {
    return type == kF32 ? static_cast<const float*>(data)[i] : from_bf16(static_cast<const uint16_t*>(data)[i]);
}
static void put(void* data, int type, size_t i, float value) {
    if (type == kF32) static_cast<float*>(data)[i] = value;
    else static_cast<uint16_t*>(data)[i] = to_bf16(value);
}
static size_t at(const Matrix& m, size_t i, size_t j) { return i * m.row_step + j * m.col_step; }

// ---- the product: tiles of 8 columns by 32 rows of D, vectors along rows ------------------------------------------------
constexpr size_t kRows = 32, kCols = 8, kDepth = 256;
typedef float Vector __attribute__((vector_size(64), aligned(64)));

// Packs `count` lines of length `depth` as [depth][width], zeros where there is no line.
static void pack(const Matrix& m, bool lines_are_rows, size_t first, size_t count, size_t width, size_t k0, size_t depth, float* out) {
    size_t line_step = lines_are_rows ? m.row_step : m.col_step, k_step = lines_are_rows ? m.col_step : m.row_step;
    auto fill = [&](auto* data, auto convert) {
        if (k_step == 1) {
            for (size_t l = 0; l < width; l++)
                for (size_t k = 0; k < depth; k++)
                    out[k * width + l] = l < count ? convert(data[(first + l) * line_step + k0 + k]) : 0.0f;
            return;
        }
        for (size_t k = 0; k < depth; k++)
            for (size_t l = 0; l < width; l++)
                out[k * width + l] = l < count ? convert(data[(first + l) * line_step + (k0 + k) * k_step]) : 0.0f;
    };
    if (m.type == kF32) fill(static_cast<const float*>(m.data), [](float x) { return x; });
    else fill(static_cast<const uint16_t*>(m.data), from_bf16);
}
static void tile(const float* a, const float* b, size_t depth, Vector (&sum)[kCols][2]) {
    for (size_t k = 0; k < depth; k++) {
        Vector low = *reinterpret_cast<const Vector*>(a + k * kRows), high = *reinterpret_cast<const Vector*>(a + k * kRows + 16);
        for (size_t j = 0; j < kCols; j++) {
            sum[j][0] += low * b[k * kCols + j];
            sum[j][1] += high * b[k * kCols + j];
        }
    }
}
static float* aligned_floats(std::vector<float>& storage, size_t count) {
    if (storage.size() < count + 16) storage.resize(count + 16);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(storage.data()) + 63) / 64 * 64);
}

static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))); }
static float gelu_gradient(float x) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
}

static void finish(const Gemm& g, size_t i, size_t j, float sum) {
    float value = g.alpha * sum;
    if (g.beta != 0.0f) value += g.beta * get(g.c.data, g.c.type, at(g.c, i, j));
    if (reads_bias(g.epilogue)) value += get(g.bias, g.bias_type, i);
    if (is_gelu(g.epilogue)) {
        if (g.epilogue & AUX) put(g.aux.data, g.aux.type, at(g.aux, i, j), value);
        value = gelu(value);
    }
    if (is_gelu_gradient(g.epilogue)) value *= gelu_gradient(get(g.aux.data, g.aux.type, at(g.aux, i, j)));
    if (g.epilogue == 2 || g.epilogue == 6) value = std::max(value, 0.0f);
    put(g.d.data, g.d.type, at(g.d, i, j), value);
}

// A panel of 32 rows of D: `a` is packed once for it, `b` comes packed.
static void panel(const Gemm& g, size_t i0, const float* packed_b) {
    size_t m = g.d.rows, n = g.d.cols, k = g.a.cols, rows = std::min(kRows, m - i0), tiles = (n + kCols - 1) / kCols;
    static thread_local std::vector<float> a_storage, sum_storage;
    float* a = aligned_floats(a_storage, kRows * kDepth);
    float* sums = aligned_floats(sum_storage, tiles * kCols * kRows);
    std::fill(sums, sums + tiles * kCols * kRows, 0.0f);
    for (size_t k0 = 0; k0 < k; k0 += kDepth) {
        size_t depth = std::min(kDepth, k - k0);
        pack(g.a, true, i0, rows, kRows, k0, depth, a);
        for (size_t t = 0; t < tiles; t++) {
            Vector(&sum)[kCols][2] = *reinterpret_cast<Vector(*)[kCols][2]>(sums + t * kCols * kRows);
            Vector local[kCols][2];
            memcpy(local, sum, sizeof local);
            tile(a, packed_b + (t * k + k0) * kCols, depth, local);
            memcpy(sum, local, sizeof local);
        }
    }
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < rows; i++) finish(g, i0 + i, j, sums[j * kRows + i]);
}

// Sums over k of A's rows or B's columns; over n of D's rows for DGELU_BGRAD.
static void bias_gradient(const Gemm& g) {
    bool of_b = g.epilogue == BGRADB;
    const Matrix& m = g.epilogue == 208 ? g.d : of_b ? g.b : g.a;
    size_t lines = of_b ? m.cols : m.rows, length = of_b ? m.rows : m.cols;
    for (size_t l = 0; l < lines; l++) {
        float sum = 0;
        for (size_t k = 0; k < length; k++) sum += get(m.data, m.type, of_b ? at(m, k, l) : at(m, l, k));
        put(g.bias, g.bias_type, l, sum);
    }
}

void multiply(const Gemm& g) {
    size_t m = g.d.rows, n = g.d.cols, k = g.a.cols, tiles = (n + kCols - 1) / kCols;
    std::vector<float> storage;
    float* b = aligned_floats(storage, tiles * kCols * std::max<size_t>(k, 1));
    parallel(tiles, [&](size_t t) { pack(g.b, false, t * kCols, std::min(kCols, n - t * kCols), kCols, 0, k, b + t * k * kCols); });
    parallel((m + kRows - 1) / kRows, [&](size_t p) { panel(g, p * kRows, b); });
    if (writes_bias(g.epilogue)) bias_gradient(g);
}

bool check_epilogue(const Gemm& g) {
    if (reads_bias(g.epilogue) || writes_bias(g.epilogue)) {
        size_t count = g.epilogue == BGRADB ? g.d.cols : g.d.rows;
        if (!check_range(reinterpret_cast<uintptr_t>(g.bias), count * size_of(g.bias_type), "cublasLtMatmul: the bias")) return false;
    }
    if (g.epilogue & AUX) {
        size_t count = (g.aux.cols - 1) * g.aux.col_step + g.aux.rows;
        if (!check_range(reinterpret_cast<uintptr_t>(g.aux.data), count * size_of(g.aux.type), "cublasLtMatmul: the auxiliary matrix")) return false;
    }
    return true;
}
}  // namespace softgpu
