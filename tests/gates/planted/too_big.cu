// planted: do not fit a multiprocessor
// 200,000 bytes a block: more than a multiprocessor of sm_80 has.
extern "C" __global__ void __launch_bounds__(256) too_big_f32(float* y) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
}
