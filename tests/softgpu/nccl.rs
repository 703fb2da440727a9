//! Collectives between processes: sums, shares and gathers on two and four ranks, and the reports when ranks
//! disagree or one is missing.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use cudarc::nccl::{Comm, Id, ReduceOp};
use half::bf16;

use super::{REPORTED, child, library_path};

/// Buckets in the order in which a backward pass frees them. The second is more than a chunk of shared memory.
const BUCKETS: [usize; 3] = [1000, 300_000, 24];

/// A child's role: `RANK RANKS KIND FOLDER`. The id goes through a file, as the program sends it by MPI.
#[test]
fn child_is_a_rank() {
    let Some(role) = child::role() else { return };
    let words: Vec<&str> = role.splitn(4, ' ').collect();
    let (rank, ranks): (usize, usize) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let context = CudaContext::new(0).unwrap();
    // SAFETY: streams are ordered by hand below.
    unsafe { context.disable_event_tracking() };
    let (compute, side) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let comm = Comm::from_rank(side.clone(), rank, ranks, exchange_id(Path::new(words[3]), rank)).unwrap();
    match words[2] {
        "buckets" => buckets(&compute, &side, &comm, &[0, 1, 2]),
        "swapped" => buckets(&compute, &side, &comm, if rank == 1 { &[1, 0, 2] } else { &[0, 1, 2] }),
        "missing" if rank == 1 => return,
        "missing" => buckets(&compute, &side, &comm, &[0, 1, 2]),
        "shares" => shares(&side, &comm),
        other => panic!("no kind {other}"),
    }
    println!("rank {rank} right");
}

fn exchange_id(folder: &Path, rank: usize) -> Id {
    let path = folder.join("id");
    if rank == 0 {
        let id = Id::new().unwrap();
        let bytes: Vec<u8> = id.internal().iter().map(|b| *b as u8).collect();
        std::fs::write(folder.join("id.tmp"), bytes).unwrap();
        std::fs::rename(folder.join("id.tmp"), path).unwrap();
        return id;
    }
    let start = Instant::now();
    loop {
        if let Ok(bytes) = std::fs::read(&path) {
            let mut text = [0; 128];
            text.iter_mut().zip(bytes).for_each(|(t, b)| *t = b as _);
            return Id::uninit(text);
        }
        assert!(start.elapsed() < crate::start::PATIENCE, "rank 0 wrote no id");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn value(bucket: usize, i: usize, rank: usize) -> f32 {
    (i % 7 + bucket) as f32 + 10.0 * rank as f32
}

/// Gradients bucket by bucket on a stream of their own, in the given order, two steps.
fn buckets(compute: &Arc<CudaStream>, side: &Arc<CudaStream>, comm: &Comm, order: &[usize]) {
    for _ in 0..2 {
        let mut gradients: Vec<CudaSlice<f32>> = (0..3)
            .map(|b| {
                let values: Vec<f32> = (0..BUCKETS[b]).map(|i| value(b, i, comm.rank())).collect();
                compute.clone_htod(&values).unwrap()
            })
            .collect();
        side.wait(&compute.record_event(None).unwrap()).unwrap();
        for &b in order {
            comm.all_reduce_in_place(&mut gradients[b], &ReduceOp::Sum).unwrap();
        }
        compute.wait(&side.record_event(None).unwrap()).unwrap();
        for (b, gradient) in gradients.iter().enumerate() {
            let got = compute.clone_dtoh(gradient).unwrap();
            let sum = |i| (0..comm.world_size()).map(|r| value(b, i, r)).sum::<f32>();
            assert!(got.iter().enumerate().all(|(i, &v)| v == sum(i)), "bucket {b}");
        }
    }
}

/// As the sharded optimiser: each rank gets the sum of its part, and all get all parts back, in bf16.
fn shares(stream: &Arc<CudaStream>, comm: &Comm) {
    let (ranks, part) = (comm.world_size(), 200);
    let values: Vec<f32> = (0..part * ranks).map(|i| value(0, i, comm.rank())).collect();
    let all = stream.clone_htod(&values).unwrap();
    let mut mine = stream.alloc_zeros::<f32>(part).unwrap();
    comm.reduce_scatter(&all, &mut mine, &ReduceOp::Sum).unwrap();
    let got = stream.clone_dtoh(&mine).unwrap();
    let sum = |i: usize| (0..ranks).map(|r| value(0, i, r)).sum::<f32>();
    assert!(got.iter().enumerate().all(|(i, &v)| v == sum(comm.rank() * part + i)));

    let narrow: Vec<bf16> = got.iter().map(|v| bf16::from_f32(*v)).collect();
    let narrow = stream.clone_htod(&narrow).unwrap();
    let mut gathered = stream.alloc_zeros::<bf16>(part * ranks).unwrap();
    comm.all_gather(&narrow, &mut gathered).unwrap();
    let got = stream.clone_dtoh(&gathered).unwrap();
    assert!(got.iter().enumerate().all(|(i, &v)| v == bf16::from_f32(sum(i))));

    let mut sent = stream.clone_htod(&[comm.rank() as f32; 5]).unwrap();
    comm.broadcast_in_place(&mut sent, ranks as i32 - 1).unwrap();
    assert_eq!(stream.clone_dtoh(&sent).unwrap(), [ranks as f32 - 1.0; 5]);
}

fn start(ranks: usize, kind: &str, streams: &str) -> Vec<std::process::Output> {
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..ranks)
        .map(|rank| {
            let role = format!("{rank} {ranks} {kind} {}", folder.path().display());
            let mut command = child::command("softgpu::nccl::child_is_a_rank", &role);
            command.env("LD_LIBRARY_PATH", library_path()).env("SOFTGPU_STREAMS", streams);
            if kind == "missing" {
                command.env("SOFTGPU_NCCL_TIMEOUT", "2");
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    children.into_iter().map(|c| c.wait_with_output().unwrap()).collect()
}

#[test]
fn ranks_sum_share_and_gather() {
    for (ranks, kind, streams) in [
        (2, "buckets", "eager"),
        (2, "buckets", "lazy"),
        (4, "buckets", "random:1"),
        (2, "buckets", "threads:1"),
        (2, "shares", "lazy"),
        (4, "shares", "eager"),
    ] {
        for output in start(ranks, kind, streams) {
            assert!(output.status.success(), "{ranks} {kind} {streams}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("right"));
        }
    }
}

#[test]
fn ranks_that_disagree_are_told_which_call_differs() {
    let outputs = start(2, "swapped", "eager");
    assert!(outputs.iter().any(|o| o.status.code() == Some(REPORTED)));
    let lines: Vec<String> = outputs.iter().flat_map(child::reports).collect();
    let names = |l: &String| {
        l.contains("call 1, AllReduce of") && l.contains("1000 elements") && l.contains("300000 elements")
    };
    assert!(lines.iter().any(names), "{lines:?}");
}

#[test]
fn a_missing_rank_is_named() {
    let outputs = start(2, "missing", "eager");
    assert_eq!(outputs[0].status.code(), Some(REPORTED));
    let lines = child::reports(&outputs[0]);
    assert!(lines[0].contains("rank 1 is missing"), "{lines:?}");
}
