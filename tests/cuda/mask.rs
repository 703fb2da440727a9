//! Masking on the device is the CPU engine's to the bit: ids, rows, labels.

use super::buffers::{engine, packs};
use super::support::{device, words};
use crate::engine::support::Pack;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::cuda::Cuda;
use ctune_dist::engine::op::{self, MaskRule};
use ctune_dist::engine::{Device, DeviceBatch, Engine};

const RULE: MaskRule = MaskRule {
    seed: 5,
    threshold: (0.15 * 4_294_967_296.0) as u32,
    segments: 3,
    whole_word: false,
    vocab: 1000,
    cls: 0,
    sep: 1,
    mask: 2,
};

/// Every third id continues a word.
fn continues(vocab: u32) -> Vec<u32> {
    (0..vocab).map(|id| u32::from(id >= 3 && id % 3 == 0)).collect()
}

/// What the CPU engine makes of `pack`: ids, rows and labels.
fn on_cpu(pack: &Pack, rule: &MaskRule) -> [Vec<u32>; 3] {
    let cpu = Cpu::new();
    let mut pieces = cpu.zeros(rule.vocab as usize).unwrap();
    cpu.upload(&continues(rule.vocab), &mut pieces, 0).unwrap();
    // The lists have room for every token; the right count is the one that is no error.
    let mut batch = pack.device(&cpu);
    for masked in 0..=pack.tokens() {
        batch = pack.device(&cpu);
        batch.masked = masked;
        batch.masked_rows = cpu.zeros(pack.tokens()).unwrap();
        batch.masked_labels = cpu.zeros(pack.tokens()).unwrap();
        if cpu.run(op::MaskTokens { batch: &mut batch, rule, continues: &pieces }).is_ok() {
            break;
        }
    }
    let (t, m) = (pack.tokens(), batch.masked);
    [batch.ids[..t].to_vec(), batch.masked_rows[..m].to_vec(), batch.masked_labels[..m].to_vec()]
}

fn on_gpu(gpu: &Cuda<f32>, pack: &Pack, rule: &MaskRule, masked: usize) -> DeviceBatch<Cuda<f32>> {
    let mut batch = device(gpu, pack);
    // what is queued for the lists goes out before they are replaced
    gpu.download(&batch.ids, 0..1).unwrap();
    batch.masked = masked;
    batch.masked_rows = words(gpu, &vec![u32::MAX; masked]);
    batch.masked_labels = words(gpu, &vec![u32::MAX; masked]);
    let mut pieces = gpu.zeros(rule.vocab as usize).unwrap();
    gpu.upload(&continues(rule.vocab), &mut pieces, 0).unwrap();
    gpu.watch().set(true);
    gpu.run(op::MaskTokens { batch: &mut batch, rule, continues: &pieces }).unwrap();
    batch
}

#[test]
fn masks_are_the_cpu_engines() {
    for vocab in [40, 1000] {
        for pack in packs(vocab) {
            for (segments, whole_word) in [(3, false), (1, true), (2, false), (3, true)] {
                let rule = MaskRule { segments, whole_word, vocab, ..RULE };
                let [ids, rows, labels] = on_cpu(&pack, &rule);
                let gpu = engine(&pack, rows.len());
                let batch = on_gpu(&gpu, &pack, &rule, rows.len());
                let whole = |buffer| gpu.download::<u32>(buffer, 0..buffer.len()).unwrap();
                let behind = |list: Vec<u32>, n: usize| {
                    assert!(list[n..].iter().all(|&x| x == u32::MAX), "written after {n}");
                    list[..n].to_vec()
                };
                assert_eq!(behind(whole(&batch.ids), pack.tokens()), ids);
                assert_eq!(behind(whole(&batch.masked_rows), rows.len()), rows);
                assert_eq!(behind(whole(&batch.masked_labels), rows.len()), labels);
            }
        }
    }
}

#[test]
fn a_wrong_count_is_an_error_where_results_are_checked() {
    let pack = Pack::new(&[300], 1000);
    let masked = on_cpu(&pack, &RULE)[1].len() + 1;
    let gpu: Cuda<f32> = engine(&pack, masked);
    let mut batch = device(&gpu, &pack);
    // what is queued for the lists goes out before they are replaced
    gpu.download(&batch.ids, 0..1).unwrap();
    batch.masked = masked;
    (batch.masked_rows, batch.masked_labels) = (words(&gpu, &[]), words(&gpu, &[]));
    let pieces = gpu.zeros(1000).unwrap();
    gpu.watch().set(true);
    let error = gpu
        .run(op::MaskTokens { batch: &mut batch, rule: &RULE, continues: &pieces })
        .unwrap_err()
        .to_string();
    assert!(error.contains("the host counted"), "{error}");
}
