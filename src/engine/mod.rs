//! One device's arithmetic behind one trait, so that forward, backward and the training loop are
//! written once. The engine knows buffers, rows and offsets; it knows no model.
//!
//! Conventions, the same for every implementation:
//! * matrices are row-major; a linear layer's weight is [N, K] (out, in) as Hugging Face stores it;
//! * parameters and their gradients live in flat arenas, addressed by offset (`LinearAt`, ...);
//!   gradients are f32 and are *added to* (several packs accumulate into one step);
//! * activations are one buffer a field, allocated once at their largest size; every operation
//!   takes the row count it works on, and never touches rows behind it;
//! * nothing here allocates per call in a way that the caller can see, waits for the host, or
//!   depends on how samples were packed: a row's result depends on its own sequence alone;
//! * reductions have a fixed order: the same call gives the same bits.
//!
//! Symbols T, S, M, H, I, A, D, V are those of `model/shape.rs`.

mod aggregate;
pub mod cpu;
pub mod cuda;
mod describe;
mod fetch;
mod random;
mod real;
pub mod stats;
mod update;

use crate::Result;
pub use aggregate::Aggregate;
pub use describe::{
    EmbedAt, Epilogue, HeadAt, Heads, LinearAt, LossScale, Memory, NormAt, PackCounts, RankLoss, Rows,
    Segment,
};
pub use fetch::Fetch;
pub use random::{Dropout, MaskRule};
pub use real::Real;
pub use update::{AdamW, ParamGroup, Slice, slices};

/// What buffers hold.
pub trait Elem: bytemuck::Pod + Default + Send + Sync + std::fmt::Debug {}
impl Elem for f32 {}
impl Elem for u32 {}
impl Elem for half::bf16 {}

/// A pack on the device. Buffers are allocated once at the pack budget; the counts say how much of
/// them is in use.
pub struct DeviceBatch<B: Backend> {
    /// T
    pub tokens: usize,
    /// S
    pub sequences: usize,
    /// M
    pub masked: usize,
    /// Ranking groups.
    pub groups: usize,
    /// Documents of the ranking groups; 0 where every sequence is one.
    pub documents: usize,
    pub epoch: u32,
    /// Token ids, [T]; `mask_tokens` replaces the chosen ones in place.
    pub ids: B::Buf<u32>,
    /// [T]
    pub positions: B::Buf<u32>,
    /// [T]
    pub segments: B::Buf<u32>,
    /// [T]
    pub row_sample: B::Buf<u32>,
    /// [S + 1]; its first S entries are also the rows of the [CLS] tokens.
    pub cu_seqlens: B::Buf<u32>,
    /// [S]
    pub samples: B::Buf<u32>,
    /// QDPP classes, [S].
    pub pair_labels: B::Buf<u32>,
    /// Factors of the pairs' QDPP losses, [S].
    pub pair_weights: B::Buf<f32>,
    /// First sequence of each document, [documents + 1].
    pub cu_documents: B::Buf<u32>,
    /// First document (or sequence, where every sequence is one) of each group, [groups + 1].
    pub cu_groups: B::Buf<u32>,
    /// Labels or a teacher's scores, a document each; only some ranking losses read them.
    pub targets: B::Buf<f32>,
    /// Rows of the masked tokens, ascending, [M]; written by `mask_tokens`.
    pub masked_rows: B::Buf<u32>,
    /// Their original ids, [M]; written by `mask_tokens`.
    pub masked_labels: B::Buf<u32>,
}

// One parameter a buffer, as the kernels behind them have: a struct for each operation would only
// rename them.
#[allow(clippy::too_many_arguments)]
/// A device's operations. Each names its formula; forward and backward stand side by side.
pub trait Backend: Clone + 'static {
    /// Type of weights and activations.
    type Real: Real;
    /// Device memory.
    type Buf<T: Elem>: Send;
    /// Whether the device works behind the host: a host that waits for a step's numbers before it gives
    /// the next step out leaves such a device without work.
    const WORKS_BEHIND: bool = false;

    /// The device's name, for people.
    fn describe(&self) -> String;

    // ---- memory ------------------------------------------------------------------------------
    /// A zeroed buffer of `len` elements.
    fn zeros<T: Elem>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// Copies `src` to `dst[at..at + src.len()]`.
    fn upload<T: Elem>(&self, src: &[T], dst: &mut Self::Buf<T>, at: usize) -> Result<()>;
    /// Copies `src[range]` to the host; waits for it.
    fn download<T: Elem>(&self, src: &Self::Buf<T>, range: std::ops::Range<usize>) -> Result<Vec<T>>;
    /// Sets `dst[range]` to zero.
    fn clear<T: Elem>(&self, dst: &mut Self::Buf<T>, range: std::ops::Range<usize>) -> Result<()>;
    /// Hands `buf[range]` to `work` on the host and takes back what it leaves there.
    fn on_host(
        &self,
        buf: &mut Self::Buf<f32>,
        range: std::ops::Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()>;
    /// Host f32 values to weights at `at`.
    fn upload_weights(&self, src: &[f32], dst: &mut Self::Buf<Self::Real>, at: usize) -> Result<()>;
    /// Weights to host f32 values.
    fn download_weights(
        &self,
        src: &Self::Buf<Self::Real>,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<f32>>;

    /// Sets `dst` [rows, width] to zero.
    fn clear_rows(&self, dst: &mut Self::Buf<Self::Real>, rows: Rows, width: usize) -> Result<()> {
        self.clear(dst, 0..rows.count() * width)
    }
    /// Starts bringing `src[range]` to the host, without waiting for it (some values, not arenas).
    fn fetch(&self, src: &Self::Buf<f32>, range: std::ops::Range<usize>) -> Result<Fetch> {
        Ok(Fetch::here(self.download(src, range)?))
    }

    /// The device's memory, seen for one model whose packs have at most `most` of everything; `None`
    /// where it is the host's.
    fn memory(&self, most: &PackCounts) -> Result<Option<Memory>> {
        let _ = most;
        Ok(None)
    }

    /// Seconds that the device takes for each of `times` calls of `work`, one behind the other.
    fn time(&self, times: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let once = |_| {
            let start = std::time::Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        };
        (0..times).map(once).collect()
    }

    // ---- packs -------------------------------------------------------------------------------
    /// The engine for one model whose packs have at most `most` of everything.
    fn for_packs(&self, most: &PackCounts) -> Result<Self> {
        let _ = most;
        Ok(self.clone())
    }
    /// Announces the next pack's counts: before its operations, once a pack.
    fn begin_pack(&self, counts: &PackCounts) -> Result<()>;
    /// Announces a segment. True when the device has replayed it; else the caller runs its
    /// operations and then calls `end_segment`.
    fn begin_segment(&self, segment: Segment) -> Result<bool> {
        let _ = segment;
        Ok(false)
    }
    /// Debug mode: from now on (or no longer) the first operation that makes a value that is not
    /// finite is an error with its name. Devices without such a trap leave it to the gradient's norm.
    fn check_results(&self, on: bool) {
        let _ = on;
    }
    /// Ends the segment that was announced last.
    fn end_segment(&self) -> Result<()> {
        Ok(())
    }

    // ---- masking -----------------------------------------------------------------------------
    /// Applies `rule` to `batch.ids` in place; writes `masked_rows`, `masked_labels` (ascending
    /// rows). `batch.masked` was computed on the host by the same function and must agree.
    /// `continues` [V] is 1 for a WordPiece that continues a word (used by whole-word masking).
    fn mask_tokens(
        &self,
        batch: &mut DeviceBatch<Self>,
        rule: &MaskRule,
        continues: &Self::Buf<u32>,
    ) -> Result<()>;

    // ---- matrix products ---------------------------------------------------------------------
    /// out [rows, N] = x [rows, K] Wᵀ (+ b).
    fn linear(
        &self,
        x: &Self::Buf<Self::Real>,
        weights: &Self::Buf<Self::Real>,
        at: LinearAt,
        rows: Rows,
        epilogue: Epilogue,
        out: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// pre [rows, N] = x Wᵀ + b; act [rows, N] = GELU(pre), the exact erf form of BERT.
    fn linear_gelu(
        &self,
        x: &Self::Buf<Self::Real>,
        weights: &Self::Buf<Self::Real>,
        at: LinearAt,
        rows: Rows,
        pre: &mut Self::Buf<Self::Real>,
        act: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// dx [rows, K] = dy [rows, N] W (added to dx when `accumulate`).
    fn linear_backward_input(
        &self,
        dy: &Self::Buf<Self::Real>,
        weights: &Self::Buf<Self::Real>,
        at: LinearAt,
        rows: Rows,
        accumulate: bool,
        dx: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// grads.W [N, K] += dyᵀ x. The gradient of b is the column sums of dy: whoever makes dy adds them
    /// while it has its rows (`residual_norm_backward`, `gelu_backward`, `attention_backward`, the losses).
    fn linear_backward_weight(
        &self,
        dy: &Self::Buf<Self::Real>,
        x: &Self::Buf<Self::Real>,
        at: LinearAt,
        rows: Rows,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// act [rows, width] = GELU(pre), the bits that `linear_gelu` gives.
    fn gelu(
        &self,
        pre: &Self::Buf<Self::Real>,
        rows: Rows,
        width: usize,
        act: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// dact [rows, width] *= GELU'(pre), in place: becomes the gradient of `pre`. Its column sums are
    /// added to `grads` at `bias`, where there is one.
    fn gelu_backward(
        &self,
        pre: &Self::Buf<Self::Real>,
        dact: &mut Self::Buf<Self::Real>,
        rows: Rows,
        width: usize,
        bias: Option<usize>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;

    // ---- rows --------------------------------------------------------------------------------
    /// sum [T, H] = word[id] + position[pos] + segment[seg]; out = dropout(LayerNorm(sum)).
    /// `row_stats` [T, 2] keeps (mean, 1 / sqrt(var + eps)) of each row.
    fn embed(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Self::Buf<Self::Real>,
        at: EmbedAt,
        drop: Dropout,
        sum: &mut Self::Buf<Self::Real>,
        row_stats: &mut Self::Buf<f32>,
        out: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// Adds the gradients of the three tables and of the LayerNorm. `dout` [T, H] is overwritten.
    /// The sum over equal ids has a fixed order (no float atomics).
    fn embed_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Self::Buf<Self::Real>,
        at: EmbedAt,
        drop: Dropout,
        sum: &Self::Buf<Self::Real>,
        row_stats: &Self::Buf<f32>,
        dout: &mut Self::Buf<Self::Real>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// y [T, H], in place: y = residual + dropout(y + bias), kept for backward; out = LayerNorm(y).
    /// `bias` is the offset of the bias [H] of the linear layer that made y.
    fn residual_norm(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Self::Buf<Self::Real>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        residual: &Self::Buf<Self::Real>,
        y: &mut Self::Buf<Self::Real>,
        row_stats: &mut Self::Buf<f32>,
        out: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// From dout [T, H]: gradients of gamma, beta and `bias` are added to `grads`;
    /// dresidual [T, H] = the gradient of the sum (overwritten); dy [T, H] = the same through the
    /// dropout (overwritten).
    fn residual_norm_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Self::Buf<Self::Real>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        y: &Self::Buf<Self::Real>,
        row_stats: &Self::Buf<f32>,
        dout: &Self::Buf<Self::Real>,
        dresidual: &mut Self::Buf<Self::Real>,
        dy: &mut Self::Buf<Self::Real>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// out [rows, H] = LayerNorm(x).
    fn norm(
        &self,
        x: &Self::Buf<Self::Real>,
        weights: &Self::Buf<Self::Real>,
        at: NormAt,
        rows: Rows,
        row_stats: &mut Self::Buf<f32>,
        out: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// d [rows, H], in place: from the gradient of the output to that of x; adds those of gamma, beta.
    fn norm_backward(
        &self,
        x: &Self::Buf<Self::Real>,
        weights: &Self::Buf<Self::Real>,
        at: NormAt,
        rows: Rows,
        row_stats: &Self::Buf<f32>,
        d: &mut Self::Buf<Self::Real>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// out [n, H] = x[rows[i]] for i < n.
    fn gather_rows(
        &self,
        x: &Self::Buf<Self::Real>,
        rows: &Self::Buf<u32>,
        n: Rows,
        hidden: usize,
        out: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// x[rows[i]] += src [n, H]; the rows are distinct.
    fn scatter_add_rows(
        &self,
        src: &Self::Buf<Self::Real>,
        rows: &Self::Buf<u32>,
        n: Rows,
        hidden: usize,
        x: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;

    // ---- attention ---------------------------------------------------------------------------
    /// qkv [T, 3H] (q, k, v; each head by head) -> out [T, H] = dropout(softmax(q kᵀ / sqrt(D))) v
    /// within each sequence; `lse` [T, A] keeps the log-sum-exp of each row's scaled scores.
    fn attention(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &Self::Buf<Self::Real>,
        lse: &mut Self::Buf<f32>,
        out: &mut Self::Buf<Self::Real>,
    ) -> Result<()>;
    /// dqkv [T, 3H] from dout [T, H] (overwritten, not added). Its column sums are added to `grads` at
    /// `bias` [3H], where there is one.
    fn attention_backward(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &Self::Buf<Self::Real>,
        lse: &Self::Buf<f32>,
        out: &Self::Buf<Self::Real>,
        dout: &Self::Buf<Self::Real>,
        dqkv: &mut Self::Buf<Self::Real>,
        bias: Option<usize>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;

    // ---- losses ------------------------------------------------------------------------------
    /// Softmax-cross-entropy over the vocabulary. logits [M, V] without bias; `bias` [V] is added
    /// here. In place: logits become scale.value * (softmax - onehot); adds the gradient of the bias to
    /// `grads` and loss, accuracy and count to `sums`. `LossScale::MEASURE`:
    /// logits are left with their bias, and `grads` may be empty.
    fn mlm_loss(
        &self,
        weights: &Self::Buf<Self::Real>,
        bias: usize,
        vocab: usize,
        labels: &Self::Buf<u32>,
        rows: Rows,
        scale: LossScale,
        logits: &mut Self::Buf<Self::Real>,
        grads: &mut Self::Buf<f32>,
        sums: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// QDPP in one pass. pre [S, H] is the pooler's product without bias; pooled = tanh(pre + b_p),
    /// logits [S, 2] = pooled Wᵀ + b, cross-entropy against labels [S], each times its factor [S]. In place:
    /// pre becomes its own gradient times `scale.value`; adds the gradients of W, b and the pooler's bias to
    /// `grads`, and loss, accuracy and count to `sums` (accuracy and count know no factor). `LossScale::MEASURE`: no gradients
    /// (labels are still read, `grads` may be empty).
    fn qdpp_head(
        &self,
        weights: &Self::Buf<Self::Real>,
        at: HeadAt,
        labels: &Self::Buf<u32>,
        factors: &Self::Buf<f32>,
        rows: Rows,
        scale: LossScale,
        pre: &mut Self::Buf<Self::Real>,
        logits: &mut Self::Buf<f32>,
        grads: &mut Self::Buf<f32>,
        sums: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// Relevance scores. In place: pre [S, H] becomes pooled = tanh(pre + b_p);
    /// scores [S] = dropout(pooled) wᵀ + b (position 0 of each sample keys the dropout).
    fn score_head(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Self::Buf<Self::Real>,
        at: HeadAt,
        drop: Dropout,
        pre: &mut Self::Buf<Self::Real>,
        scores: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// In place: pooled [S, H] becomes the gradient of `pre`; adds those of w, b and the pooler's bias.
    fn score_head_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Self::Buf<Self::Real>,
        at: HeadAt,
        drop: Dropout,
        dscores: &Self::Buf<f32>,
        pooled: &mut Self::Buf<Self::Real>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// Scores of documents [documents] from their passages' scores [S], summed in f64.
    fn aggregate(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &Self::Buf<f32>,
        documents: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// dscores [S] of passages from ddocuments [documents].
    fn aggregate_backward(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &Self::Buf<f32>,
        ddocuments: &Self::Buf<f32>,
        dscores: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// `loss` of every group, the first document of a group being its positive. Scores of documents ->
    /// dscores times `scale.value`; adds to `sums`.
    fn rank_loss(
        &self,
        loss: RankLoss,
        batch: &DeviceBatch<Self>,
        scores: &Self::Buf<f32>,
        scale: LossScale,
        dscores: &mut Self::Buf<f32>,
        sums: &mut Self::Buf<f32>,
    ) -> Result<()>;

    // ---- optimiser ---------------------------------------------------------------------------
    /// Sets the first so many elements of each buffer to zero where norm_sq[0] is not finite; a device
    /// that works behind decides by itself. For devices whose launches cover rows behind a pack's
    /// last: what lies there meets gradients of 0, which changes nothing unless it is NaN.
    fn forget(
        &self,
        norm_sq: &Self::Buf<f32>,
        buffers: Vec<(&mut Self::Buf<Self::Real>, usize)>,
    ) -> Result<()> {
        if self.download(norm_sq, 0..1)?[0].is_finite() {
            return Ok(());
        }
        buffers.into_iter().try_for_each(|(buffer, len)| self.clear(buffer, 0..len))
    }
    /// out[slot] = sum of squares of src over `ranges` (overwritten), accumulated in f64 on CPU.
    fn sum_squares(
        &self,
        src: &Self::Buf<f32>,
        ranges: &[std::ops::Range<usize>],
        out: &mut Self::Buf<f32>,
        slot: usize,
    ) -> Result<()>;
    /// One AdamW update of every group, clipping by the global norm sqrt(norm_sq[0]) in the same
    /// pass. Does nothing when norm_sq[0] is not finite. Also sets the gradients of the groups to
    /// zero; a frozen group (`lr_scale` 0) keeps its weights and moments.
    /// `owned` are the ranges of the arena that this rank updates, ascending (all of it, or its share
    /// when the optimiser's state is sharded); `master` and the moments hold them end to end.
    /// `master` are the weights in f32, which the update reads and writes; it is empty where `Real`
    /// is f32.
    fn adamw(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[std::ops::Range<usize>],
        norm_sq: &Self::Buf<f32>,
        weights: &mut Self::Buf<Self::Real>,
        master: &mut Self::Buf<f32>,
        grads: &mut Self::Buf<f32>,
        moment1: &mut Self::Buf<f32>,
        moment2: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// First half of a LAMB update (You et al. 2020, algorithm 2, phi the identity, with bias
    /// correction). Arguments are `adamw`'s, but each group is one tensor. For every owned element of
    /// a group, w being its master weight (or the weight where `master` is empty):
    ///   g' = g min(1, clip_norm / (norm + 1e-6))   m = b1 m + (1 - b1) g'   v = b2 v + (1 - b2) g'^2
    ///   r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + (weight_decay w if the group decays)
    /// r takes the gradient's place; norms[2 i] and norms[2 i + 1] become the sums of w^2 and of r^2
    /// over the owned elements of group i, in a fixed order (0 where none is owned and for frozen
    /// groups). Where norm_sq[0] is not finite, the moments stay and r and the norms are 0.
    fn lamb_direction(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[std::ops::Range<usize>],
        norm_sq: &Self::Buf<f32>,
        weights: &Self::Buf<Self::Real>,
        master: &Self::Buf<f32>,
        grads: &mut Self::Buf<f32>,
        moment1: &mut Self::Buf<f32>,
        moment2: &mut Self::Buf<f32>,
        norms: &mut Self::Buf<f32>,
    ) -> Result<()>;
    /// Second half, once `norms` [groups, 2] hold the sums over all ranks: w -= lr lr_scale ratio r
    /// for every owned element, ratio = sqrt(norms[2 i] / norms[2 i + 1]) where the group decays and
    /// both are above 0, else 1 (biases and LayerNorms are not adapted, as in the authors' code).
    /// Writes master and weights, and sets the gradients of all groups to zero.
    fn lamb_apply(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[std::ops::Range<usize>],
        norms: &Self::Buf<f32>,
        weights: &mut Self::Buf<Self::Real>,
        master: &mut Self::Buf<f32>,
        grads: &mut Self::Buf<f32>,
    ) -> Result<()>;
}
