//! What GPUs can do: the makers' data sheets, and which share of a data sheet's number well-known programs
//! reach. The shares are assumptions of a prediction, taken from others' published measurements; nothing here
//! was measured with this program.

use crate::engine::Card;
use crate::{Error, Result};

/// One GPU model.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Gpu {
    pub name: &'static str,
    /// Dense bf16 tensor-core peak with f32 accumulation, FLOP/s.
    pub peak: f64,
    /// Memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Memory, bytes.
    pub memory: f64,
    /// f32 instructions/s of all lanes together, which is half the f32 FLOP/s.
    pub lanes: f64,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// NVLink to the other GPUs of the node, bytes/s in one direction; 0 without NVLink.
    pub nvlink: f64,
    /// Host link, bytes/s in one direction.
    pub pcie: f64,
    /// Share of `peak` that large matrix products reach.
    pub product_share: f64,
    /// Share of `peak` that attention's products reach, forward and backward, heads of 64, 512 tokens.
    pub attention_share: [f64; 2],
}

/// Where the shares come from; printed with every prediction.
pub const SOURCES: [&str; 5] = [
    "peaks, bandwidths, memory: NVIDIA's data sheets (dense bf16, SXM boards if there are any)",
    "matrix products: Maximum Achievable Matmul FLOPS from the Machine Learning Engineering book (S. Bekman), \
     about 0.87 of the peak on A100, 0.80 on H100, 0.78 on B200; 0.80 where it has none; times wave quantisation",
    "attention: FlashAttention-2 at heads of 64 and 512 tokens, on H100 252 forward and 190 TFLOP/s backward \
     (Dao-AILab/flash-attention pull request 2688); on A100 about 0.40 and 0.29 of the peak (its paper's figures); \
     by similarity elsewhere",
    "memory: 0.90 of the bandwidth from 100 MB on, 0.75 from 10 MB, 0.60 from 1 MB, 0.30 below (calculon's A100 model)",
    "all-reduce: 0.8 of the link (NCCL issue 212: protocol overhead of some 20 %); 1.5 us between kernels of a \
     recorded step",
];

/// Share of a link that collectives reach.
pub const LINK_SHARE: f64 = 0.8;
/// Seconds between two kernels of a recorded step.
pub const KERNEL_GAP: f64 = 1.5e-6;

const GB: f64 = 1e9;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

const fn gpu(name: &'static str, tera: f64, bandwidth: f64, memory: f64, f32_tera: f64, sms: usize) -> Gpu {
    Gpu {
        name,
        peak: tera * 1e12,
        bandwidth: bandwidth * GB,
        memory: memory * GIB,
        lanes: f32_tera * 0.5e12,
        multiprocessors: sms,
        nvlink: 0.0,
        pcie: 32.0 * GB,
        product_share: 0.80,
        attention_share: [0.40, 0.29],
    }
}

/// Every model that `--gpu` knows. Memory is what the boards report, in GiB.
pub const GPUS: [Gpu; 9] = [
    Gpu { nvlink: 300.0 * GB, product_share: 0.87, ..gpu("a100", 312.0, 2039.0, 80.0, 19.5, 108) },
    Gpu { nvlink: 300.0 * GB, product_share: 0.87, ..gpu("a100-40gb", 312.0, 1555.0, 40.0, 19.5, 108) },
    Gpu {
        nvlink: 450.0 * GB,
        pcie: 64.0 * GB,
        attention_share: [0.255, 0.19],
        ..gpu("h100", 989.4, 3352.0, 80.0, 66.9, 132)
    },
    Gpu {
        nvlink: 450.0 * GB,
        pcie: 64.0 * GB,
        attention_share: [0.255, 0.19],
        ..gpu("h200", 989.4, 4800.0, 141.0, 66.9, 132)
    },
    Gpu {
        nvlink: 900.0 * GB,
        pcie: 64.0 * GB,
        product_share: 0.78,
        attention_share: [0.13, 0.10],
        ..gpu("b200", 2250.0, 7700.0, 180.0, 75.0, 148)
    },
    gpu("l4", 121.0, 300.0, 22.5, 30.3, 58),
    gpu("l40s", 362.0, 864.0, 45.0, 91.6, 142),
    gpu("a10", 125.0, 600.0, 22.5, 31.2, 72),
    gpu("rtx4090", 165.2, 1008.0, 24.0, 82.6, 128),
];

impl Gpu {
    /// The model of this name.
    ///
    /// # Errors
    /// `Error::Config` that lists the names.
    pub fn find(name: &str) -> Result<Self> {
        GPUS.into_iter().find(|gpu| gpu.name == name.to_ascii_lowercase()).ok_or_else(|| {
            let names = GPUS.map(|gpu| gpu.name).join(", ");
            Error::config(format!("--gpu {name}: unknown; known are {names}"))
        })
    }

    /// The card as the counting engine needs it: its multiprocessors decide how many partial sums there are. Shared
    /// memory is what every card from compute capability 8.0 on gives a block.
    pub fn card(&self) -> Card {
        Card {
            name: self.name.to_owned(),
            multiprocessors: self.multiprocessors as i32,
            memory: self.memory as usize,
            ..Card::default()
        }
    }

    /// Seconds to move `bytes` through memory in one kernel.
    pub fn memory_seconds(&self, bytes: f64) -> f64 {
        let share = match bytes {
            b if b >= 100e6 => 0.90,
            b if b >= 10e6 => 0.75,
            b if b >= 1e6 => 0.60,
            _ => 0.30,
        };
        bytes / (share * self.bandwidth)
    }

    /// Seconds of a matrix product [m, k] x [k, n]. Tiles of 256 x 128 or 128 x 128 are dealt to the
    /// multiprocessors in waves. The last wave may be partly empty; k may be cut to fill it.
    pub fn product_seconds(&self, [m, n, k]: [usize; 3]) -> f64 {
        // The smaller tile reuses less of what it loads: CUTLASS' profiles put it about 8 % lower.
        let tiles = [(256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.92)];
        let filled = tiles.iter().flat_map(|&(tm, tn, share)| {
            [1usize, 2, 4, 8, 16].into_iter().filter(move |cut| *cut == 1 || k / cut >= 1024).map(
                move |cut| {
                    let blocks = m.div_ceil(tm) * n.div_ceil(tn) * cut;
                    let useful = (m * n * cut) as f64 / (tm * tn) as f64;
                    share * useful / (blocks.div_ceil(self.multiprocessors) * self.multiprocessors) as f64
                },
            )
        });
        let best = filled.fold(0.0f64, f64::max);
        2.0 * m as f64 * n as f64 * k as f64 / (self.peak * self.product_share * best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_that_are_part_empty_cost_time() {
        let a100 = Gpu::find("A100").unwrap();
        // 108 tiles of 256 x 128 fill one wave; a row of tiles more takes a second one
        let full = a100.product_seconds([256 * 108, 128, 1024]);
        let exact = 2.0 * (256u64 * 108 * 128 * 1024) as f64 / (312e12 * 0.87);
        assert!((full / exact - 1.0).abs() < 1e-12, "{full} {exact}");
        let more = a100.product_seconds([256 * 109, 128, 1024]);
        assert!(more > 1.05 * full, "{more} {full}");
    }

    #[test]
    fn an_unknown_model_is_refused_with_the_names() {
        let error = Gpu::find("gtx").unwrap_err().to_string();
        assert!(error.contains("gtx") && error.contains("a100") && error.contains("rtx4090"), "{error}");
    }
}
