// planted: a row kernel without 16-byte loads
// Four bytes a load: a quarter of what one instruction can bring.
extern "C" __global__ void __launch_bounds__(256) scale_f32(const float* x, float* y, float factor) {
    int i = 256 * blockIdx.x + threadIdx.x;
    y[i] = factor * x[i];
}
