//! The interpreter on kernels made for it (planted.cu): correct ones give correct numbers and no fault, and
//! each planted mistake is found and named with its line.

use super::{Arg, Device, Launch, Module, asset};
use half::bf16;

const K: usize = 48;

fn module() -> Module {
    asset("tests/softgpu/ptx/planted.cu")
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 24) as f32 / 128.0 - 1.0).collect()
}

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Runs a product; the result, or the fault's text.
fn product(name: &str) -> Result<Vec<f32>, String> {
    let (module, mut device) = (module(), Device::default());
    let (a, b) = (narrow(&values(64 * K, 1)), narrow(&values(K * 64, 2)));
    let (a, b) = (device.upload(&a), device.upload(&b));
    let c = device.unwritten::<f32>(64 * 64);
    let args = [Arg::Pointer(a), Arg::Pointer(b), Arg::Pointer(c), Arg::U32(K as u32)];
    let kernel = module.kernel(name);
    let launch = Launch { kernel, grid: [1, 1, 1], block: 128, dynamic_shared: 8192, args: &args };
    launch.run(&mut device).map_err(|fault| fault.to_string())?;
    Ok(device.read(c))
}

fn exact_product() -> Vec<f64> {
    let wide =
        |values: Vec<f32>| -> Vec<f64> { narrow(&values).iter().map(|x| f64::from(x.to_f32())).collect() };
    let (a, b) = (wide(values(64 * K, 1)), wide(values(K * 64, 2)));
    (0..64 * 64).map(|i| (0..K).map(|k| a[i / 64 * K + k] * b[k * 64 + i % 64]).sum()).collect()
}

/// The largest difference, a NaN counting as infinite.
fn distance(got: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(got.len(), exact.len());
    let each = got.iter().zip(exact).map(|(&x, &y)| (f64::from(x) - y).abs());
    each.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) })
}

#[test]
fn a_product_on_tensor_cores_with_copies_ahead() {
    let error = distance(&product("product").unwrap(), &exact_product());
    assert!(error < 1e-5, "{error}");
}

/// The fault of a mistake says `what` and where.
#[track_caller]
fn found<T: std::fmt::Debug>(outcome: Result<T, String>, what: &str) {
    let fault = outcome.expect_err("the mistake was not found");
    assert!(fault.contains(what), "{fault}");
    let line = fault.split([':', ' ']).nth(1).and_then(|line| line.parse::<u32>().ok());
    assert!(fault.contains(".cu:") || fault.contains(".cuh:"), "no source in {fault}");
    assert!(line.is_some_and(|line| line > 0), "no line in {fault}");
}

#[test]
fn mistakes_of_the_copies_are_found() {
    found(product("product_no_wait"), "has not waited for its copy");
    found(product("product_no_barrier"), "without a barrier between");
    found(product("product_no_barrier_end"), "without a barrier between");
}

#[test]
fn a_wrong_lane_gives_wrong_numbers() {
    let error = distance(&product("product_wrong_lane").unwrap(), &exact_product());
    assert!(error > 0.1, "{error}");
}

#[test]
fn copies_past_the_end_are_found() {
    found(product("product_overrun"), "which is in no buffer");
}

fn sum(name: &str) -> Result<Vec<f32>, String> {
    let (module, mut device) = (module(), Device::default());
    let (rows, width) = (3, 520);
    let x = device.upload(&values(rows * width, 3));
    let out = device.unwritten::<f32>(rows);
    let args = [Arg::Pointer(x), Arg::Pointer(out), Arg::U32(width as u32)];
    let launch =
        Launch { kernel: module.kernel(name), grid: [3, 1, 1], block: 128, dynamic_shared: 0, args: &args };
    launch.run(&mut device).map_err(|fault| fault.to_string())?;
    Ok(device.read(out))
}

#[test]
fn a_reduction_of_rows_and_its_mistakes() {
    let x = values(3 * 520, 3);
    let exact: Vec<f64> = x.chunks_exact(520).map(|row| row.iter().map(|&v| f64::from(v)).sum()).collect();
    assert!(distance(&sum("sum").unwrap(), &exact) < 1e-4);
    found(sum("sum_no_barrier"), "race: shared byte");
    found(sum("sum_overrun"), "which is in no buffer");
    found(sum("sum_shared_overrun"), "of shared memory, which has");
    found(sum("sum_half_warp"), "deadlock");
    found(sum("sum_diverged"), "barrier");
}

#[test]
fn lanes_of_a_warp_are_ordered_by_its_barrier_alone() {
    let run = |name: &str| -> Result<Vec<f32>, String> {
        let (module, mut device) = (module(), Device::default());
        let (x, out) = (device.upload(&values(128, 4)), device.unwritten::<f32>(128));
        let args = [Arg::Pointer(x), Arg::Pointer(out)];
        let launch = Launch {
            kernel: module.kernel(name),
            grid: [1, 1, 1],
            block: 128,
            dynamic_shared: 0,
            args: &args,
        };
        launch.run(&mut device).map_err(|fault| fault.to_string())?;
        Ok(device.read(out))
    };
    let x = values(128, 4);
    let expected: Vec<f32> = (0..128).map(|i| x[i ^ 1]).collect();
    assert_eq!(run("neighbours").unwrap(), expected);
    found(run("neighbours_unordered"), "race: shared byte");
}

#[test]
fn atomics_count() {
    let (module, mut device) = (module(), Device::default());
    let x: Vec<u32> = (0..1000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 27).collect();
    let (at, counts) = (device.upload(&x), device.upload(&[7u32; 16]));
    let args = [Arg::Pointer(at), Arg::U32(1000), Arg::Pointer(counts)];
    let kernel = module.kernel("histogram");
    Launch { kernel, grid: [2, 1, 1], block: 128, dynamic_shared: 0, args: &args }.run(&mut device).unwrap();
    let expected: Vec<u32> = (0..16).map(|v| 7 + x.iter().filter(|&&y| y == v).count() as u32).collect();
    assert_eq!(device.read::<u32>(counts), expected);
}

#[test]
fn numbers_of_every_kind_of_instruction() {
    use ctune_dist::random::philox;
    let (module, mut device) = (module(), Device::default());
    let n = 200usize;
    let x: Vec<f32> = values(n, 5).iter().map(|v| 2.5 * v).collect();
    let y: Vec<u32> = (0..n as u32).map(|i| i * 977).collect();
    let out = device.unwritten::<f32>(12 * n);
    let args = [
        Arg::Pointer(device.upload(&x)),
        Arg::Pointer(device.upload(&y)),
        Arg::Pointer(out),
        Arg::U32(n as u32),
    ];
    let kernel = module.kernel("numbers");
    Launch { kernel, grid: [2, 1, 1], block: 128, dynamic_shared: 0, args: &args }.run(&mut device).unwrap();
    let got = device.read::<f32>(out);
    for (i, &v) in x.iter().enumerate() {
        let (w, d) = (f64::from(v), philox([y[i], 7], [i as u32, 1, 2, 3]));
        let exact = [
            w.exp(),
            (w.abs() + 1.0).ln(),
            candle_core::cpu::erf::erf_f64(w),
            w.tanh(),
            1.0 / (w + 3.0),
            w.abs().sqrt(),
            (w.abs() + 0.5).sqrt().recip(),
            f64::from(bf16::from_f32(v).to_f32()),
            f64::from(f32::from_bits(d[0] >> 9 | 0x3F80_0000)),
            f64::from(d[1] % 1000),
            f64::from(d[2].count_ones() + (d[3] & 255)),
            w * 3.0 / 7.0,
        ];
        for (n, exact) in exact.into_iter().enumerate() {
            let error = (f64::from(got[12 * i + n]) - exact).abs();
            // CUDA's manual promises at most 2 ulp for these functions
            assert!(error <= 2.5e-7 * exact.abs().max(0.1), "{n} of {v}: {} and {exact}", got[12 * i + n]);
        }
    }
}

#[test]
fn a_launch_that_does_not_fit_its_kernel_is_refused() {
    let (module, mut device) = (module(), Device::default());
    let launch = |args: &[Arg], block: u32, device: &mut Device| {
        Launch { kernel: module.kernel("sum"), grid: [1, 1, 1], block, dynamic_shared: 0, args }.run(device)
    };
    let x = Arg::Pointer(device.upload(&[0f32; 512]));
    assert!(launch(&[x, x], 128, &mut device).unwrap_err().what.contains("2 arguments for 3 parameters"));
    assert!(launch(&[x, x, x], 128, &mut device).unwrap_err().what.contains("8 bytes, the parameter 4"));
    let args = [x, x, Arg::U32(512)];
    assert!(launch(&args, 256, &mut device).unwrap_err().what.contains("launch bounds of 128"));
    assert!(launch(&args, 128, &mut device).is_ok());
}
