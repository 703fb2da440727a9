//! The driver's own behaviour, through cudarc as in the engine: what works, and each misuse that must be
//! reported. Misuse ends a process, so it happens in child processes.

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg, result};
use cudarc::nvrtc::compile_ptx;

use super::{child, library_path, load};

const KERNELS: &str = r#"
#define BOTH(name, T) extern "C" __global__ void __launch_bounds__(THREADS) name(T* x, T by, unsigned n) { \
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = x[i] * by; }
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

const N: usize = 1000;
const CONFIG: LaunchConfig =
    LaunchConfig { grid_dim: (8, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };

impl Device {
    fn new() -> Self {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: streams are ordered by hand below.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        Self { context, stream }
    }

    fn function(&self, name: &str) -> CudaFunction {
        self.context.load_module(compile_ptx(KERNELS).unwrap()).unwrap().load_function(name).unwrap()
    }
}

#[test]
fn kernels_compile_and_run() {
    load();
    let device = Device::new();
    let scale = device.function("scale_f32");
    let mut x = device.stream.clone_htod(&(0..N).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let (by, n) = (3.0f32, N as u32);
    // SAFETY: the kernel takes these arguments and stays below n.
    unsafe { device.stream.launch_builder(&scale).arg(&mut x).arg(&by).arg(&n).launch(CONFIG) }.unwrap();
    let y = device.stream.clone_dtoh(&x).unwrap();
    assert!(y.iter().enumerate().all(|(i, &v)| v == 3.0 * i as f32));

    let sums = device.function("row_sums");
    let mut out = device.stream.alloc_zeros::<f32>(4).unwrap();
    let config = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (96, 1, 1), shared_mem_bytes: 12 };
    // SAFETY: as above, four rows of 250.
    unsafe { device.stream.launch_builder(&sums).arg(&x).arg(&mut out).arg(&250i32).launch(config) }.unwrap();
    let got = device.stream.clone_dtoh(&out).unwrap();
    let want: Vec<f32> = y.chunks(250).map(|r| r.iter().sum()).collect();
    assert_eq!(got, want);
}

#[test]
fn source_that_does_not_compile_gives_the_compilers_log() {
    load();
    let error = compile_ptx("extern \"C\" __global__ void k(float* x) { x[0] = nothing; }").unwrap_err();
    assert!(format!("{error:?}").contains("nothing"), "{error:?}");
}

#[test]
fn a_captured_graph_replays_on_new_contents() {
    load();
    let device = Device::new();
    let scale = device.function("scale_f32");
    let side = device.context.new_stream().unwrap();
    let mut x = device.stream.clone_htod(&vec![1.0f32; N]).unwrap();
    let mut y = device.stream.clone_htod(&vec![1.0f32; N]).unwrap();
    let n = N as u32;
    device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    // x is doubled here; a second stream, forked and joined by events, triples y and copies it over x.
    // SAFETY: the kernels take these arguments and stay below n.
    unsafe { device.stream.launch_builder(&scale).arg(&mut x).arg(&2.0f32).arg(&n).launch(CONFIG) }.unwrap();
    side.wait(&device.stream.record_event(None).unwrap()).unwrap();
    // SAFETY: as above.
    unsafe { side.launch_builder(&scale).arg(&mut y).arg(&3.0f32).arg(&n).launch(CONFIG) }.unwrap();
    side.memcpy_dtod(&y, &mut x).unwrap();
    device.stream.wait(&side.record_event(None).unwrap()).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = device.stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(device.stream.clone_dtoh(&x).unwrap(), vec![1.0; N], "capturing runs nothing");
    for times in 1..=3 {
        graph.launch().unwrap();
        assert_eq!(device.stream.clone_dtoh(&x).unwrap(), vec![3f32.powi(times); N]);
    }
}

/// What a child does, by its role. Without a role: nothing.
#[test]
fn child_misuses_the_device() {
    let Some(role) = child::role() else { return };
    let device = Device::new();
    let n = N as u32;
    match role.as_str() {
        "wait" | "no wait" => two_streams(&device, role == "wait"),
        "leak" => std::mem::forget(device.stream.clone_htod(&[1.0f32; 25]).unwrap()),
        "fault of a card" => {
            let x = device.stream.alloc_zeros::<f32>(8).unwrap();
            let answer = copy_out(&device, &x, 9);
            assert_eq!(answer.unwrap_err().0, CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        "overrun" => {
            let x = device.stream.alloc_zeros::<f32>(8).unwrap();
            let _ = copy_out(&device, &x, 9);
        }
        "use after free" => {
            let scale = device.function("scale_f32");
            // SAFETY: the address is used after its release on purpose; the software device sees it.
            unsafe {
                let address = result::malloc_sync(4 * N).unwrap();
                result::free_sync(address).unwrap();
                let _ =
                    device.stream.launch_builder(&scale).arg(&address).arg(&1.0f32).arg(&n).launch(CONFIG);
            }
        }
        "shared memory" | "allowed shared memory" => {
            let sums = device.function("row_sums");
            if role == "allowed shared memory" {
                use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                sums.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 60_000).unwrap();
            }
            let x = device.stream.alloc_zeros::<f32>(32).unwrap();
            let mut out = device.stream.alloc_zeros::<f32>(1).unwrap();
            let config =
                LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 60_000 };
            // SAFETY: one row of 32.
            let _ = unsafe {
                device.stream.launch_builder(&sums).arg(&x).arg(&mut out).arg(&32i32).launch(config)
            };
            device.stream.synchronize().unwrap();
        }
        "launch bounds" => {
            let scale = device.function("scale_f32");
            let mut x = device.stream.alloc_zeros::<f32>(N).unwrap();
            let config = LaunchConfig { block_dim: (256, 1, 1), ..CONFIG };
            // SAFETY: refused before it runs.
            let _ = unsafe {
                device.stream.launch_builder(&scale).arg(&mut x).arg(&1.0f32).arg(&n).launch(config)
            };
        }
        "capture of an outside event" => {
            let event = device.context.default_stream().record_event(None).unwrap();
            device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
            let _ = device.stream.wait(&event);
        }
        "capture without a join" => {
            let side = device.context.new_stream().unwrap();
            let mut x = device.stream.alloc_zeros::<f32>(N).unwrap();
            device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
            device.stream.memset_zeros(&mut x).unwrap();
            side.wait(&device.stream.record_event(None).unwrap()).unwrap();
            side.memset_zeros(&mut x).unwrap();
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let _ = device.stream.end_capture(flags);
        }
        other => panic!("no role {other}"),
    }
}

fn copy_out(
    device: &Device,
    x: &cudarc::driver::CudaSlice<f32>,
    count: usize,
) -> Result<(), cudarc::driver::DriverError> {
    use cudarc::driver::DevicePtr;
    let mut host = vec![0f32; count];
    let (address, _guard) = x.device_ptr(&device.stream);
    // SAFETY: `host` is long enough; the device's side is too short on purpose where `count` says so.
    unsafe { result::memcpy_dtoh_async(&mut host, address, device.stream.cu_stream()) }
}

/// One stream writes, another copies what was written, with or without waiting for it.
fn two_streams(device: &Device, wait: bool) {
    let scale = device.function("scale_f32");
    let second = device.context.new_stream().unwrap();
    let mut x = device.stream.clone_htod(&vec![1.0f32; N]).unwrap();
    let mut y = device.stream.alloc_zeros::<f32>(N).unwrap();
    device.context.synchronize().unwrap();
    let n = N as u32;
    for _ in 0..4 {
        // SAFETY: the kernel takes these arguments and stays below n.
        unsafe { device.stream.launch_builder(&scale).arg(&mut x).arg(&2.0f32).arg(&n).launch(CONFIG) }
            .unwrap();
    }
    if wait {
        second.wait(&device.stream.record_event(None).unwrap()).unwrap();
    }
    second.memcpy_dtod(&x, &mut y).unwrap();
    let got = second.clone_dtoh(&y).unwrap();
    device.context.synchronize().unwrap();
    println!("{}", if got == vec![16.0; N] { "right" } else { "WRONG" });
}

const ORDERS: [&str; 10] = [
    "eager",
    "lazy",
    "random:1",
    "random:2",
    "random:3",
    "random:4",
    "random:5",
    "threads:1",
    "threads:2",
    "threads:3",
];

fn child(role: &str) -> std::process::Command {
    let mut command = child::command("softgpu::device::child_misuses_the_device", role);
    command.env("LD_LIBRARY_PATH", library_path());
    command
}

#[test]
fn a_wait_orders_two_streams_and_its_absence_is_seen() {
    let run = |role: &str, streams: &str| {
        let output = child(role).env("SOFTGPU_STREAMS", streams).output().unwrap();
        assert!(output.status.success() && child::reports(&output).is_empty(), "{streams}: {output:?}");
        String::from_utf8_lossy(&output.stdout).contains("right")
    };
    assert!(ORDERS.iter().all(|streams| run("wait", streams)));
    let seen: Vec<_> = ORDERS.iter().filter(|streams| !run("no wait", streams)).collect();
    assert!(seen.contains(&&"lazy") && seen.len() >= 3, "a missing wait shows only under {seen:?}");
    assert!(!seen.contains(&&"eager"), "eager runs in the order of the calls");
}

#[test]
fn misuse_is_reported_in_one_line() {
    for (role, words) in [
        ("leak", &["1 allocations (100 bytes) never released"][..]),
        ("overrun", &["the source of cuMemcpyDtoHAsync touches bytes 0 to 36 of 32 bytes"]),
        ("use after free", &["kernel scale_f32, argument 0", "memory after its release (4000 bytes"]),
        (
            "shared memory",
            &["kernel row_sums", "60000 bytes of dynamic shared memory", "cuFuncSetAttribute allows 49152"],
        ),
        ("launch bounds", &["kernel scale_f32", "256 threads where __launch_bounds__ promises at most 128"]),
        ("capture of an outside event", &["waits for an event that was recorded outside the capture"]),
        ("capture without a join", &["is not joined to it by an event"]),
    ] {
        child::expect_report(&mut child(role), words);
    }
    child::expect_silence(&mut child("allowed shared memory"));
}

#[test]
fn a_lenient_device_returns_a_cards_error() {
    let output = child("fault of a card").env("SOFTGPU_STRICT", "0").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(child::reports(&output).len(), 1);
}
