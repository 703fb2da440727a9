// planted: has no line in launches.txt
extern "C" __global__ void __launch_bounds__(32) unnamed_f32(float* y) { y[threadIdx.x] = 1.0f; }
