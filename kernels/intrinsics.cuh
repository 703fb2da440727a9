// The instructions that C++ has no word for: tensor-core products, matrix loads from shared memory,
// asynchronous copies, and two conversions that are one instruction on the card and a dozen in C++.
// All PTX of the project is here and nowhere else, so that a host compiler can run the kernels with a
// header of the same name and the same functions.
//
// Needs sm_80. Fragment layouts are those of the PTX manual, `mma.m16n8k16`; with g = lane / 4 and
// t = lane % 4 a lane holds, two values a register,
//   A [16, 16]  a0 (g, 2t..)  a1 (g + 8, 2t..)  a2 (g, 2t + 8..)  a3 (g + 8, 2t + 8..)
//   B [16, 8]   b0 (2t.., g)  b1 (2t + 8.., g)
//   C [16, 8]   c0 c1 (g, 2t..)  c2 c3 (g + 8, 2t..)       one f32 a register
#pragma once

#include "common.cuh"

// Shared-memory address of a generic pointer, as the instructions below want it.
__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit values: lane l names row l % 8 of matrix l / 8 (16 bytes, aligned);
// r[i] is this lane's part of matrix i, row g, columns 2t and 2t + 1.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed: rows 2t and 2t + 1 of column g.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b with bf16 factors and f32 sums. Not volatile: the compiler may move it between loads.
__device__ inline void mma_bf16_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Starts a copy of 16 bytes past the registers and the first-level cache; writes zeros and reads
// nothing when not `valid`.
__device__ inline void cp_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

// Closes a group of copies.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way; others' copies need a barrier besides.
template <int N> __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

// `common.cuh`'s pack_bf16 in one instruction.
__device__ inline uint32_t cvt_bf16x2(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2^x within 2 ulp; results below 2^-126 are 0, 2^-INF is 0. Without the flush to zero the card spends
// three more instructions a value on numbers that a bf16 probability cannot hold.
__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
