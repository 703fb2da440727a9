//! A small model and pack for a whole step. `doctor` compares it with the reference model, and the tests
//! train it.

use crate::data::batch::Batch;
use crate::engine::op::MaskRule;
use crate::model::shape::Shape;
use crate::random::philox;
use crate::text::Special;

/// Heads of 64 columns and heads of 32 do not share a model, so each has one.
pub fn shapes() -> [Shape; 2] {
    let shape = |heads| Shape {
        vocab: 301, // no multiple of 8, as BERT's 30522
        hidden: 64,
        layers: 1,
        heads,
        intermediate: 136,
        positions: 160,
        segments: heads, // each number of segments once
        norm_eps: Shape::NORM_EPS,
    };
    [shape(1), shape(2)]
}

/// Sequences of one token and more, of one attention block and more, in two ranking groups.
pub fn pack(vocab: usize) -> Batch {
    let special = Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
    let mut batch = Batch { epoch: 3, step_masked: 40, step_pairs: 9, ..Batch::default() };
    for (i, (first, second)) in
        [(2, Some(5)), (17, None), (3, Some(60)), (30, Some(100)), (1, None)].iter().enumerate()
    {
        let words = |from: u32, n: usize| -> Vec<u32> {
            let draw = |j: u32| 5 + philox([7, i as u32], [from + j, 0, 0, 0])[0] % (vocab as u32 - 5);
            (0..n as u32).map(draw).collect()
        };
        let second = second.map(|n| words(1000, n));
        batch.push(special, 50 + i as u32, &words(0, *first), second.as_deref());
    }
    batch.pair_labels = vec![0, 1, 1, 0, 1];
    batch.pair_weights = vec![1.0, 0.5, 2.0, 1.25, 1.0];
    batch.cu_documents = vec![0, 1, 3, 5];
    batch.cu_groups = vec![0, 1, 3];
    batch.targets = vec![1.0, 0.0, 2.0];
    batch.masked = crate::data::mask::count_masked(&rule(vocab), &batch, &vec![0; vocab]);
    batch
}

/// One token in five, over queries and documents.
pub fn rule(vocab: usize) -> MaskRule {
    MaskRule {
        seed: 5,
        threshold: u32::MAX / 5,
        segments: 3,
        whole_word: false,
        vocab: vocab as u32,
        cls: 2,
        sep: 3,
        mask: 4,
    }
}
