// planted: instructions on local memory
// 96 values live at once, with the 64 registers that a block of 1024 threads leaves each: they spill.
extern "C" __global__ void __launch_bounds__(1024) spills_f32(const float* x, float* y) {
    float v[96];
#pragma unroll
    for (int i = 0; i < 96; i++) v[i] = x[threadIdx.x + 1024 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 96; i++) y[threadIdx.x + 1024 * i] = v[i] * v[95 - i] + v[(i * 37) % 96];
}
