// A matrix product with cuBLASLt's epilogues, on host memory.
#pragma once
#include "device.h"

namespace softgpu {
constexpr int kF32 = 0, kBF16 = 14;  // cudaDataType_t
inline size_t size_of(int type) { return type == kF32 ? 4 : 2; }

// Element (i, j) lies at data[i * row_step + j * col_step].
struct Matrix {
    void* data = nullptr;
    int type = kF32;
    size_t rows = 0, cols = 0, row_step = 1, col_step = 0;
};
struct Gemm {
    float alpha = 1, beta = 0;
    unsigned epilogue = 1;
    Matrix a, b, c, d, aux;  // d = epilogue(alpha a b + beta c); a is [m][k] and b [k][n], transposes applied
    void* bias = nullptr;    // [m], or [n] for BGRADB
    int bias_type = kF32;
};
bool known_epilogue(unsigned epilogue);
bool check_epilogue(const Gemm& g);  // bias and aux lie in live memory; else reports
void multiply(const Gemm& g);
}  // namespace softgpu
