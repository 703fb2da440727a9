// planted: worse: worse_f32 on sm_80: registers
// Nothing is wrong with it; it is compared with a table that has one register less.
extern "C" __global__ void __launch_bounds__(256) worse_f32(const float4* x, float4* y) {
    float4 v = x[256 * blockIdx.x + threadIdx.x];
    y[256 * blockIdx.x + threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
}
