// Zeros in the activations of a step whose gradient was not finite (`op::Forget`), decided on the
// device, so that the host need not know before the next step begins: launches may cover rows after
// a pack's last, and values there meet gradients of 0, which changes nothing unless they are NaN.
//
// Layouts: norm_sq [1]; to0..to7: eight buffers of vectors0..vectors7 `vectors` of 16 bytes, which buffers consist
// of (engine/cuda/buffer.rs); a launch with fewer buffers says 0 vectors for the others.
// Bytes: 4 a block in ordinary steps; else every buffer is written once.
// Geometry: up to 4 blocks of 256 threads a multiprocessor for each buffer, grid (blocks, buffers), striding over it;
// BERT-base has 52 buffers (4 a layer and 4 more without recomputation), so 7 launches a step, each of which ends at
// once in ordinary steps.
// Tried: one launch with a table of the buffers' distances from the first: nothing can tell such a distance from an
// overrun, so no sanitizer can watch it. A launch a buffer: 52 gaps between kernels a step. Neither was timed on a card.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) forget(const float* __restrict__ norm_sq, uint4* to0, uint4* to1,
                                                         uint4* to2, uint4* to3, uint4* to4, uint4* to5, uint4* to6,
                                                         uint4* to7, uint32_t vectors0, uint32_t vectors1,
                                                         uint32_t vectors2, uint32_t vectors3, uint32_t vectors4,
                                                         uint32_t vectors5, uint32_t vectors6, uint32_t vectors7) {
    if (fabsf(norm_sq[0]) < INF) return;
    uint4* to = to0;
    uint32_t vectors = vectors0;
    switch (blockIdx.y) {
        case 1: to = to1, vectors = vectors1; break;
        case 2: to = to2, vectors = vectors2; break;
        case 3: to = to3, vectors = vectors3; break;
        case 4: to = to4, vectors = vectors4; break;
        case 5: to = to5, vectors = vectors5; break;
        case 6: to = to6, vectors = vectors6; break;
        case 7: to = to7, vectors = vectors7; break;
    }
    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < vectors; i += gridDim.x * 256) to[i] = make_uint4(0, 0, 0, 0);
}
