// Zeros in the activations of a step whose gradient was not finite (`Backend::forget`), decided on the
// device, so that the host need not know before the next step begins: launches may cover rows behind
// a pack's last, and what lies there meets gradients of 0, which changes nothing unless it is NaN.
//
// Layouts: norm_sq [1]; table [buffers] of places: bytes from `base` (any distance, in two halves) and
// 16-byte vectors, which buffers consist of (engine/cuda/buffer.rs).
// Bytes: 4 a block in ordinary steps; else every buffer is written once.
// Geometry: up to 4 blocks of 256 threads a multiprocessor, each striding over all buffers.
#include "common.cuh"

struct Place {
    uint32_t low, high;  // bytes from the base
    uint32_t vectors;
    uint32_t reserved;
};

extern "C" __global__ void __launch_bounds__(256) forget(
    const float* __restrict__ norm_sq, char* base, const Place* __restrict__ table, uint32_t buffers) {
    if (fabsf(norm_sq[0]) < INF) return;
    for (uint32_t b = 0; b < buffers; ++b) {
        const Place place = table[b];
        uint4* to = reinterpret_cast<uint4*>(base + (static_cast<uint64_t>(place.high) << 32 | place.low));
        for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < place.vectors; i += gridDim.x * 256)
            to[i] = make_uint4(0, 0, 0, 0);
    }
}
