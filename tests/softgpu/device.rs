//! The driver's own behaviour, seen through cudarc as the engine sees it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::load;

const KERNELS: &str = r#"
#include "scale.cuh"
#define BOTH(name, T) extern "C" __global__ void __launch_bounds__(THREADS) name(T* x, T by, unsigned n) { \
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = scale(x[i], by); }
constexpr int THREADS = 128;
BOTH(scale_f32, float)
BOTH(scale_f64, double)
extern "C" __global__ void row_sums(const float* x, float* sums, int width) {
    DYN_SHARED(float, partial);
    __shared__ float total;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[blockIdx.x * width + i];
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) { total = 0; for (int w = 0; w < blockDim.x / 32; w++) total += partial[w]; }
    __syncthreads();
    if (threadIdx.x == blockDim.x - 1) sums[blockIdx.x] = total;
}
"#;

struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl Device {
    fn new() -> Self {
        load();
        let context = CudaContext::new(0).unwrap();
        // SAFETY: streams are ordered by hand below.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        Self { context, stream }
    }

    fn function(&self, source: &str, name: &str) -> CudaFunction {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("scale.cuh"),
            "template <class T> __device__ T scale(T x, T by) { return x * by; }",
        )
        .unwrap();
        let options = CompileOptions {
            include_paths: vec![folder.path().to_str().unwrap().into()],
            ..CompileOptions::default()
        };
        let image = compile_ptx_with_opts(source, options).unwrap();
        self.context.load_module(image).unwrap().load_function(name).unwrap()
    }
}

#[test]
fn kernels_compile_and_run() {
    let device = Device::new();
    let scale = device.function(KERNELS, "scale_f32");
    let mut x = device.stream.clone_htod(&(0..1000).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let (by, n) = (3.0f32, 1000u32);
    let config = LaunchConfig { grid_dim: (8, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel takes these arguments and stays below n.
    unsafe { device.stream.launch_builder(&scale).arg(&mut x).arg(&by).arg(&n).launch(config) }.unwrap();
    let y = device.stream.clone_dtoh(&x).unwrap();
    assert!(y.iter().enumerate().all(|(i, &v)| v == 3.0 * i as f32));

    let sums = device.function(KERNELS, "row_sums");
    let mut out = device.stream.alloc_zeros::<f32>(4).unwrap();
    let config = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (96, 1, 1), shared_mem_bytes: 12 };
    // SAFETY: as above, four rows of 250.
    unsafe { device.stream.launch_builder(&sums).arg(&x).arg(&mut out).arg(&250i32).launch(config) }.unwrap();
    let got = device.stream.clone_dtoh(&out).unwrap();
    let want: Vec<f32> = y.chunks(250).map(|r| r.iter().sum()).collect();
    assert_eq!(got, want);
}
