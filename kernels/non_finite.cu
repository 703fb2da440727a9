// The NaN trap of debug mode: how many values of a result are not finite.
//
// count = #{ i < values : x[i] is NaN or infinite }, x [values]. Reads values * sizeof(T) bytes once.
// Grid: up to 1024 blocks of 256 threads, each thread strides over the values; one integer atomic a
// block (integers add up the same in any order). The counter only grows: a run ends at the first find.
#include "common.cuh"

template <class T>
__device__ inline void non_finite(const T* x, uint64_t values, uint32_t* count) {
    __shared__ uint32_t found[32];
    uint32_t mine = 0;
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < values; i += stride) {
        mine += (as_bits(to_float(x[i])) & 0x7f800000u) == 0x7f800000u;
    }
    const uint32_t total = block_sum<8>(mine, found);
    if (threadIdx.x == 0 && total > 0) atomicAdd(count, total);
}

extern "C" __global__ void __launch_bounds__(256) non_finite_f32(const float* x, uint64_t values, uint32_t* count) {
    non_finite(x, values, count);
}
extern "C" __global__ void __launch_bounds__(256) non_finite_bf16(const bf16* x, uint64_t values, uint32_t* count) {
    non_finite(x, values, count);
}
