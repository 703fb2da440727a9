// planted: nvcc
// An unused variable: a warning, and warnings are errors.
extern "C" __global__ void refused_f32(float* y) {
    int unused;
    y[threadIdx.x] = 1.0f;
}
