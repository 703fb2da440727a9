// planted: no tensor-core instruction
// A product by ordinary multiply-adds under a name that promises tensor cores.
extern "C" __global__ void __launch_bounds__(128) attention_bf16(const float* q, const float* k, float* s) {
    float sum = 0.0f;
    for (int i = 0; i < 64; i++) sum += q[64 * blockIdx.x + i] * k[64 * threadIdx.x + i];
    s[128 * blockIdx.x + threadIdx.x] = sum;
}
