// Tensor-core and asynchronous-copy instructions of kernels/intrinsics.cuh, with the lane layouts of the PTX ISA
// (sections "Matrix fragments for mma.m16n8k16" and "ldmatrix"). It has the same signatures and is included in its
// place.
//
// mma sums k in ascending order in f32. A card's order is not documented, so equality of bits is not promised.
#pragma once

#include "common.cuh"

namespace softgpu {
struct Tile {
    unsigned row[4];  // in: this lane's 16 bytes; out: its four registers
};
// Lane l brings row l % 8 of matrix l / 8 and receives row l / 4, elements 2 (l % 4) and + 1 of each matrix.
SOFTGPU_EXCHANGE inline void load_matrices(unsigned, void** payloads) {
    unsigned out[32][4];
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++) out[lane][m] = static_cast<Tile*>(payloads[8 * m + lane / 4])->row[lane % 4];
    for (int lane = 0; lane < 32; lane++) __builtin_memcpy(payloads[lane], out[lane], 16);
}
// Transposed: elements of rows 2 (l % 4) and + 1 in column l / 4.
SOFTGPU_EXCHANGE inline void load_matrices_transposed(unsigned, void** payloads) {
    unsigned out[32][4];
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++) {
            int row = 8 * m + lane % 4 * 2, column = lane / 4;
            unsigned low = static_cast<Tile*>(payloads[row])->row[column / 2] >> 16 * (column % 2) & 0xffff;
            unsigned high = static_cast<Tile*>(payloads[row + 1])->row[column / 2] >> 16 * (column % 2) & 0xffff;
            out[lane][m] = high << 16 | low;
        }
    for (int lane = 0; lane < 32; lane++) __builtin_memcpy(payloads[lane], out[lane], 16);
}
inline void load_tile(unsigned (&r)[4], const void* row, Complete complete) {
    if ((unsigned long)row % 16) fault("ldmatrix: the row's address is not a multiple of 16", __FILE__, __LINE__);
    if (!is_shared(row)) fault("ldmatrix: the row is not in shared memory", __FILE__, __LINE__);
    Tile tile;
    const unsigned* words = static_cast<const unsigned*>(row);  // read by the lane itself, so that races show
    for (int i = 0; i < 4; i++) tile.row[i] = words[i];
    collective(0xffffffffu, complete, &tile, "ldmatrix", __FILE__, __LINE__, false);
    for (int i = 0; i < 4; i++) r[i] = tile.row[i];
}

struct Product {
    unsigned a[4], b[2];
    float c[4];
};
// c[16][8] += a[16][16] b[16][8]
SOFTGPU_EXCHANGE inline void multiply(unsigned, void** payloads) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][16];
    alignas(32) float b[16][8];
    alignas(32) float c[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Product& p = *static_cast<Product*>(payloads[lane]);
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[group + i % 2 * 8][pair + i / 2 * 8] = low_bf16(p.a[i]);
            a[group + i % 2 * 8][pair + i / 2 * 8 + 1] = high_bf16(p.a[i]);
            c[group + i / 2 * 8][pair + i % 2] = p.c[i];
        }
        for (int i = 0; i < 2; i++) {
            b[pair + i * 8][group] = low_bf16(p.b[i]);
            b[pair + i * 8 + 1][group] = high_bf16(p.b[i]);
        }
    }
    for (int row = 0; row < 16; row++) {
        Row sum = *reinterpret_cast<Row*>(c[row]);
        for (int k = 0; k < 16; k++) sum += a[row][k] * *reinterpret_cast<Row*>(b[k]);
        *reinterpret_cast<Row*>(c[row]) = sum;
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            static_cast<Product*>(payloads[lane])->c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
}  // namespace softgpu

inline void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    ::softgpu::load_tile(r, row, ::softgpu::load_matrices);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    ::softgpu::load_tile(r, row, ::softgpu::load_matrices_transposed);
}
inline void mma_bf16_16816(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    ::softgpu::Product p = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
    ::softgpu::collective(0xffffffffu, ::softgpu::multiply, &p, "mma", __FILE__, __LINE__, false);
    for (int i = 0; i < 4; i++) c[i] = p.c[i];
}

// The destination is poisoned until the wait, so that a read before it gives NaN.
inline void cp_async_16(void* shared, const void* global, bool valid) {
    if ((unsigned long)shared % 16 || (valid && (unsigned long)global % 16))
        ::softgpu::fault("cp.async: an address is not a multiple of 16", __FILE__, __LINE__);
    if (!::softgpu::is_shared(shared)) ::softgpu::fault("cp.async: the destination is not in shared memory", __FILE__, __LINE__);
    *static_cast<uint4*>(shared) = {~0u, ~0u, ~0u, ~0u};
    ::softgpu::copy_issue(shared, global, valid);
}
inline void cp_async_commit() { ::softgpu::copy_commit(); }
template <int N> inline void cp_async_wait() {
    ::softgpu::Copy copy;
    while (::softgpu::copy_next(N, &copy))
        *static_cast<uint4*>(copy.to) = copy.valid ? *static_cast<const uint4*>(copy.from) : uint4{0, 0, 0, 0};
}

inline unsigned cvt_bf16x2(float low, float high) { return pack_bf16(low, high); }
// Exact to rounding; small results are flushed as the instruction does.
inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
