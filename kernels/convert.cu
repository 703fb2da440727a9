// Gradients to bf16 and back, for sums over ranks in half the bytes (`train.reduce = "bf16"`).
//
// narrow: to[i] = bf16(from[i]), to nearest, ties to even; widen: to[i] = float(from[i]); i < values.
// 6 bytes moved a value. Grid: a thread takes 8 values in 16-byte vectors; the last vector of an
// uneven length goes value by value. Both arrays start at multiples of 16 bytes (tensors do).
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) narrow(const float* from, bf16* to, uint64_t values) {
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= values) {
        float low[4], high[4];
        load_vec(from + at, low);
        load_vec(from + at + 4, high);
        const float all[8] = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
        store_vec(to + at, all);
    } else {
        for (uint64_t i = at; i < values; ++i) to[i] = to_real<bf16>(from[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256) widen(const bf16* from, float* to, uint64_t values) {
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= values) {
        float all[8];
        load_vec(from + at, all);
        const float low[4] = {all[0], all[1], all[2], all[3]}, high[4] = {all[4], all[5], all[6], all[7]};
        store_vec(to + at, low);
        store_vec(to + at + 4, high);
    } else {
        for (uint64_t i = at; i < values; ++i) to[i] = to_float(from[i]);
    }
}
