// planted: states no __launch_bounds__
// Without bounds the compiler keeps registers for 1024 threads or not, as it likes.
extern "C" __global__ void unbounded_f32(float* y) { y[threadIdx.x] = 1.0f; }
