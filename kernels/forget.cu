// Zeros in the activations of a step whose gradient was not finite (`Backend::forget`), decided on the
// device, so that the host need not know before the next step begins: launches may cover rows behind
// a pack's last, and what lies there meets gradients of 0, which changes nothing unless it is NaN.
//
// Layouts: norm_sq [1]; to: `vectors` of 16 bytes, which buffers consist of (engine/cuda/buffer.rs).
// Bytes: 4 a block in ordinary steps; else the buffer is written once.
// Geometry: up to 4 blocks of 256 threads a multiprocessor, striding over the buffer; a launch a buffer (4 a layer
// and 4 more without recomputation, 52 of BERT-base a step), each of which ends at once in ordinary steps.
// Tried: one launch with a table of the buffers' distances from the first: nothing can tell such a distance from an
// overrun, so no sanitizer can watch it. What the launches cost has not been measured.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) forget(const float* __restrict__ norm_sq, uint4* to, uint32_t vectors) {
    if (fabsf(norm_sq[0]) < INF) return;
    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < vectors; i += gridDim.x * 256) to[i] = make_uint4(0, 0, 0, 0);
}
