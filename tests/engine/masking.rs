//! MLM masking: rates, shares, what is never masked, whole words.

use super::support::*;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, MaskRule};
use ctune_dist::engine::{Device, DeviceBatch, Engine};

const VOCAB: u32 = 1000;
const RULE: MaskRule = MaskRule {
    seed: 5,
    threshold: (0.15 * 4_294_967_296.0) as u32,
    segments: 3,
    whole_word: false,
    vocab: VOCAB,
    cls: 0,
    sep: 1,
    mask: 2,
};

/// Every third id continues a word.
fn continues(cpu: &Cpu) -> ctune_dist::engine::cpu::Buffer<u32> {
    let mut buffer = cpu.zeros(VOCAB as usize).unwrap();
    buffer.iter_mut().enumerate().for_each(|(id, c)| *c = u32::from(id >= 3 && id % 3 == 0));
    buffer
}

/// Rows that the rule chooses, by its definition: a piece looks back to the first of its word.
fn chosen(pack: &Pack, rule: &MaskRule) -> Vec<u32> {
    let special = |row: usize| pack.ids[row] == rule.cls || pack.ids[row] == rule.sep;
    (0..pack.tokens())
        .filter(|&row| {
            let mut first = row;
            while rule.whole_word
                && pack.ids[first] >= 3
                && pack.ids[first].is_multiple_of(3)
                && pack.positions[first] > 0
                && !special(first - 1)
            {
                first -= 1;
            }
            rule.allows(pack.ids[row], pack.segments[row])
                && rule.chooses(pack.row_sample[row], pack.positions[first], pack.epoch)
        })
        .map(|row| row as u32)
        .collect()
}

fn masked(cpu: &Cpu, pack: &Pack, rule: &MaskRule) -> DeviceBatch<Cpu> {
    let mut batch = pack.device(cpu);
    batch.masked = chosen(pack, rule).len();
    batch.masked_rows = indices(cpu, &vec![u32::MAX; batch.masked]);
    batch.masked_labels = indices(cpu, &vec![u32::MAX; batch.masked]);
    cpu.run(op::MaskTokens { batch: &mut batch, rule, continues: &continues(cpu) }).unwrap();
    batch
}

#[test]
fn masks_follow_the_rule() {
    let cpu = Cpu::new();
    for pack in packs(VOCAB) {
        for (segments, whole_word) in [(3, false), (1, false), (2, true), (3, true)] {
            let rule = MaskRule { segments, whole_word, ..RULE };
            let batch = masked(&cpu, &pack, &rule);
            let rows = chosen(&pack, &rule);
            assert_eq!(batch.masked_rows[..rows.len()], rows);
            assert!(batch.masked_rows[rows.len()..].iter().all(|&x| x == u32::MAX));
            assert!(batch.masked_labels[rows.len()..].iter().all(|&x| x == u32::MAX));
            let mut at = 0;
            for row in 0..pack.tokens() {
                let (id, sample) = (pack.ids[row], pack.row_sample[row]);
                if rows.get(at) == Some(&(row as u32)) {
                    assert_eq!(batch.masked_labels[at], id);
                    assert_eq!(batch.ids[row], rule.replaces(id, sample, pack.positions[row], pack.epoch));
                    assert!(id != rule.cls && id != rule.sep && (segments >> pack.segments[row]) & 1 == 1);
                    at += 1;
                } else {
                    assert_eq!(batch.ids[row], id, "row {row} was not chosen");
                }
            }
        }
    }
}

/// Within five standard deviations of 15 %, and of 80 / 10 / 10 of those.
#[test]
fn masks_have_the_right_shares() {
    let cpu = Cpu::new();
    let pack = Pack::new(&[300; 400], VOCAB);
    for whole_word in [false, true] {
        let rule = MaskRule { whole_word, ..RULE };
        let batch = masked(&cpu, &pack, &rule);
        let may = pack.ids.iter().filter(|&&id| id > 1).count() as f64;
        let m = batch.masked as f64;
        // Words of 1.5 pieces on average make whole-word counts that much more variable.
        let spread = if whole_word { 2.0 } else { 1.0 };
        let within = |share: f64, of: f64, p: f64, spread: f64| {
            let deviation = (p * (1.0 - p) / of).sqrt() * spread;
            assert!((share - p).abs() < 5.0 * deviation, "{share} is not {p} +- {deviation}");
        };
        within(m / may, may, 0.15, spread);
        let pairs = || batch.masked_rows[..batch.masked].iter().zip(&batch.masked_labels[..batch.masked]);
        let count = |f: &dyn Fn(u32, u32) -> bool| {
            pairs().filter(|(r, l)| f(batch.ids[**r as usize], **l)).count() as f64
        };
        within(count(&|id, _| id == 2) / m, m, 0.8 + 0.1 / f64::from(VOCAB), 1.0);
        within(count(&|id, label| id == label) / m, m, 0.1 + 0.1 / f64::from(VOCAB), 1.0);
        let random = 0.1 - 0.2 / f64::from(VOCAB);
        within(count(&|id, label| id != 2 && id != label) / m, m, random, 1.0);
    }
}

#[test]
fn a_wrong_count_is_an_error() {
    let cpu = Cpu::new();
    let pack = Pack::new(&[200], VOCAB);
    for wrong in [-1i64, 1] {
        let mut batch = pack.device(&cpu);
        batch.masked = (chosen(&pack, &RULE).len() as i64 + wrong) as usize;
        batch.masked_rows = indices(&cpu, &vec![0; batch.masked]);
        batch.masked_labels = indices(&cpu, &vec![0; batch.masked]);
        let error = cpu
            .run(op::MaskTokens { batch: &mut batch, rule: &RULE, continues: &continues(&cpu) })
            .unwrap_err()
            .to_string();
        assert!(error.contains("the host counted"), "{error}");
    }
}
