// Kernels with one mistake each, and without it when FIXED is defined: what the software device must find, and what it
// must stay silent about. Each is launched with one block of 64 threads, where not said otherwise, on `y` of 64 floats.
#ifdef FIXED
#define BUG(wrong, right) right
#else
#define BUG(wrong, right) wrong
#endif
#include "common.cuh"
#include "intrinsics.cuh"

// Two blocks: the last thread writes behind the 128 floats.
extern "C" __global__ void overrun(float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x + 1;
    if (BUG(i <= n, i < n)) y[i] = 1;
}
// A 16-byte load from an address that is a multiple of 4 only; x has 264 floats.
extern "C" __global__ void misaligned(const float* x, float* y) {
    y[threadIdx.x] = reinterpret_cast<const float4*>(x + BUG(1, 0))[threadIdx.x].w;
}
extern "C" __global__ void divergent_barrier(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = 1;
    if (threadIdx.x < BUG(32, 64)) __syncthreads();
    else {
        __syncthreads();
    }
    y[threadIdx.x] = s[63 - threadIdx.x];
}
// Half a warp shuffles with the mask of a whole one; the other half has returned.
extern "C" __global__ void shuffle_mask(float* y) {
    if (threadIdx.x % 32 >= 16) return;
    y[threadIdx.x] = __shfl_xor_sync(BUG(0xffffffffu, 0x0000ffffu), 1.0f, 1);
}
extern "C" __global__ void shuffle_absent(float* y) {
    if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, BUG(20, 15));
}
// Half a warp waits in a shuffle, the rest at a barrier.
extern "C" __global__ void deadlock(float* y) {
    if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(BUG(0xffffffffu, 0x0000ffffu), 1.0f, 0);
    __syncthreads();
}
extern "C" __global__ void uninitialised(float* y) {
    __shared__ float s[64];
    if (threadIdx.x < BUG(32, 64)) s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void missing_barrier(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    BUG(, __syncthreads());
    y[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void missing_syncwarp(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    BUG(, __syncwarp());
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
// Every thread writes the same word.
extern "C" __global__ void write_race(float* y) {
    if (BUG(true, threadIdx.x == 0)) y[0] = threadIdx.x;
}
extern "C" __global__ void shared_overrun(float* y) {
    __shared__ float s[64];
    s[threadIdx.x + BUG(1, 0)] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
// 256 bytes of dynamic shared memory.
extern "C" __global__ void dynamic_overrun(float* y) {
    DYN_SHARED(float, s);
    s[threadIdx.x + BUG(1, 0)] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
// x has 256 floats; the copies of a commit are read without the wait for them.
extern "C" __global__ void missing_copy_wait(const float* x, float* y) {
    __shared__ __align__(16) float s[256];
    cp_async_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    cp_async_commit();
    cp_async_wait<BUG(1, 0)>();
    y[threadIdx.x] = s[4 * threadIdx.x];
}
// The wait is a thread's own: without a barrier, other threads' copies may be under way.
extern "C" __global__ void missing_copy_barrier(const float* x, float* y) {
    __shared__ __align__(16) float s[256];
    cp_async_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    cp_async_commit();
    cp_async_wait<0>();
    BUG(, __syncthreads());
    y[threadIdx.x] = s[255 - threadIdx.x];
}
// Four blocks add to the same word without an atomic: the result depends on who is last.
extern "C" __global__ void block_race(float* y) {
    if (threadIdx.x == 0) y[BUG(0, blockIdx.x)] = static_cast<float>(blockIdx.x);
}
