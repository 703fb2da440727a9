//! A training step as the list of its kernels, in the order of `model::Bert`: for each the bytes that it
//! must move at least, the bytes that it does move, its floating-point work, and the time that follows
//! on a GPU: the longest of memory, tensor cores and lanes. Time between kernels is added by the caller.

use super::hardware::Gpu;
use crate::model::Shape;
use crate::model::activations::Recompute;
pub use crate::model::shape::flops_per_token;

/// Sizes of one pack, averages over the data.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Pack {
    pub shape: Shape,
    /// T, true tokens of a pack.
    pub tokens: usize,
    /// S
    pub sequences: usize,
    /// Tokens that a token attends to, averaged over tokens.
    pub attended: f64,
    /// M, masked tokens.
    pub masked: usize,
    /// Rows that products over masked tokens work on: a recorded step runs at rounded counts.
    pub masked_rows: usize,
    pub mlm: bool,
    pub qdpp: bool,
    pub dropout: bool,
    /// What backward computes a second time.
    pub recompute: Recompute,
}

/// What limits a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A matrix product by cuBLASLt: [m, n, k].
    Product([usize; 3]),
    AttentionForward,
    AttentionBackward,
    /// One pass over rows.
    Rows,
    /// One pass over the arenas, once a step.
    Update,
}

/// One kernel of the step.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Kernel {
    pub name: &'static str,
    pub kind: Kind,
    /// Launches a pack (or a step, for the optimiser).
    pub calls: usize,
    /// Of one call. Bytes that any implementation of the step's data flow moves through memory.
    pub must: f64,
    /// Bytes that this program's kernel moves.
    pub moves: f64,
    /// Tensor-core FLOPs.
    pub flops: f64,
    /// Instructions of the ordinary lanes: GELU, LayerNorm, losses, dropout's Philox (of attention's
    /// only the dropout).
    pub lanes: f64,
}

impl Kernel {
    /// Seconds of one call.
    pub fn seconds(&self, gpu: &Gpu) -> f64 {
        let memory = gpu.memory_seconds(self.moves);
        let lanes = self.lanes / gpu.lanes;
        let tensor = match self.kind {
            Kind::Product(shape) => gpu.product_seconds(shape),
            Kind::AttentionForward => self.flops / (gpu.peak * gpu.attention_share[0]),
            Kind::AttentionBackward => self.flops / (gpu.peak * gpu.attention_share[1]),
            Kind::Rows | Kind::Update => 0.0,
        };
        match self.kind {
            // the rates count softmax in, and were measured without dropout, whose draws come on top
            Kind::AttentionForward | Kind::AttentionBackward => memory.max(tensor + lanes),
            _ => memory.max(tensor).max(lanes),
        }
    }
}

/// Bytes of bf16 and f32.
const R: f64 = 2.0;
const F: f64 = 4.0;
/// Lane instructions of dropout for one element: a Philox4x32-10 block (10 rounds of 2 wide products, 2
/// three-way xors and 2 key additions) serves 8 elements; cutting out 16 bits, comparing and scaling.
const DROP: f64 = 60.0 / 8.0 + 3.0;

/// Rows whose column sum is one partial sum behind GELU (kernels/gelu.cu).
const GELU_CHUNK: usize = 128;
/// Blocks of a LayerNorm's backward, each with a row of partial sums: three on each of an H100's
/// multiprocessors.
const NORM_BLOCKS: usize = 396;
/// Blocks of the sum of squares, at most.
const SUM_BLOCKS: f64 = 1024.0;
/// Buffers of a launch of `forget`.
const FORGET_BUFFERS: usize = 8;

/// The kernels of one pack, forward and backward.
pub fn pack_kernels(p: &Pack) -> Vec<Kernel> {
    let mut list = Vec::new();
    embedding(p, &mut list);
    layer_products(p, &mut list);
    layer_rows(p, &mut list);
    attention(p, &mut list);
    if p.mlm {
        mlm_head(p, &mut list);
    }
    if p.qdpp {
        pooler(p, &mut list);
    }
    recomputed(p, &mut list);
    list
}

/// Forward kernels of a layer that backward calls again.
fn recomputed(p: &Pack, list: &mut [Kernel]) {
    const CHEAP: [&str; 2] = ["GELU", "dropout, residual, LayerNorm"];
    const DEAR: [&str; 5] = ["q, k, v", "attention", "output", "FFN up", "FFN down"];
    for kernel in list {
        let again = match p.recompute {
            Recompute::None => false,
            Recompute::GeluNorm => CHEAP.contains(&kernel.name),
            Recompute::Layer => CHEAP.contains(&kernel.name) || DEAR.contains(&kernel.name),
        };
        if again {
            // of a layer's two LayerNorms, GeluNorm repeats the first
            let first = p.recompute == Recompute::GeluNorm && kernel.name == CHEAP[1];
            kernel.calls += if first { kernel.calls / 2 } else { kernel.calls };
        }
    }
}

/// The kernels of the update: `owned` of the `parameters` belong to this rank.
pub fn update_kernels(pack: &Pack, parameters: usize, owned: usize) -> Vec<Kernel> {
    let (all, owned) = (parameters as f64, owned as f64);
    // reads the gradient, master and two moments, writes master, moments, weight and a zero gradient
    let bytes = owned * (4.0 * F + 3.0 * F + R) + all * F;
    let update =
        |name, must, moves, lanes| Kernel { kind: Kind::Update, ..rows(name, 1, must, moves, lanes) };
    vec![
        update("sum_squares", all * F, all * F, 2.0 * all),
        update("sum_squares: blocks' sums", 0.0, 2.0 * F * SUM_BLOCKS, SUM_BLOCKS),
        update("adamw", bytes, bytes, 20.0 * owned),
        Kernel { calls: forgetting(pack), ..update("look at the norm (forget)", 0.0, F, 0.0) },
    ]
}

/// Launches that clear what a step without a finite gradient left (`Activations::read_behind`): every layer's input and
/// context, kept LayerNorms and GELUs, and rows of the heads, eight buffers a launch.
fn forgetting(p: &Pack) -> usize {
    let l = p.shape.layers;
    let contexts = if p.recompute == Recompute::Layer { 1 } else { l };
    let ffns = if p.recompute == Recompute::None { l } else { 1 };
    let heads = if p.mlm { 3 } else { 1 };
    (l + 1 + contexts + 2 * ffns + heads).div_ceil(FORGET_BUFFERS)
}

fn product(name: &'static str, calls: usize, [m, n, k]: [usize; 3], out: f64) -> Kernel {
    let (mf, nf, kf) = (m as f64, n as f64, k as f64);
    let bytes = R * (mf * kf + kf * nf) + out * mf * nf;
    let kind = Kind::Product([m, n, k]);
    Kernel { name, kind, calls, must: bytes, moves: bytes, flops: 2.0 * mf * nf * kf, lanes: 0.0 }
}

fn rows(name: &'static str, calls: usize, must: f64, moves: f64, lanes: f64) -> Kernel {
    Kernel { name, kind: Kind::Rows, calls, must, moves, flops: 0.0, lanes }
}

/// Forward [rows, n] = x Wᵀ, backward to the input (`accumulate` reads it first) and to the f32 gradient.
fn linear(
    list: &mut Vec<Kernel>,
    names: [&'static str; 3],
    calls: usize,
    [rows, n, k]: [usize; 3],
    accumulate: bool,
) {
    list.push(product(names[0], calls, [rows, n, k], R));
    list.push(product(names[1], calls, [rows, k, n], if accumulate { 2.0 * R } else { R }));
    list.push(product(names[2], calls, [n, k, rows], 2.0 * F)); // read and written: gradients are added to
}

fn layer_products(p: &Pack, list: &mut Vec<Kernel>) {
    let (t, h, i, l) = (p.tokens, p.shape.hidden, p.shape.intermediate, p.shape.layers);
    linear(list, ["q, k, v", "q, k, v: to input", "q, k, v: to weight"], l, [t, 3 * h, h], true);
    linear(list, ["output", "output: to input", "output: to weight"], l, [t, h, h], false);
    linear(list, ["FFN up", "FFN up: to input", "FFN up: to weight"], l, [t, i, h], true);
    linear(list, ["FFN down", "FFN down: to input", "FFN down: to weight"], l, [t, h, i], false);
}

/// Column sums that a kernel leaves as `parts` rows of `width` partial sums, added to a gradient: the
/// launch of `add_partials`. The parts come from the L2 cache as a rule; they are counted as if not.
fn sums(name: &'static str, calls: usize, parts: usize, width: usize) -> Kernel {
    let (gradient, parts) = (2.0 * F * width as f64, F * (parts * width) as f64);
    rows(name, calls, gradient, gradient + parts, parts / F)
}

fn layer_rows(p: &Pack, list: &mut Vec<Kernel>) {
    let (l, h, i) = (p.shape.layers, p.shape.hidden, p.shape.intermediate);
    let th = (p.tokens * p.shape.hidden) as f64;
    let ti = (p.tokens * p.shape.intermediate) as f64;
    let drop = if p.dropout { DROP } else { 0.0 };
    let statistics = 2.0 * F * p.tokens as f64;
    // GELU could ride in the product's epilogue: then only its second result is written (forward) and
    // only its input is read (backward). cuBLASLt has the tanh form alone, and BERT's is erf's. The bias is in
    // the epilogue. Backward, the gradient is read, changed in place and its columns are summed.
    let chunks = p.tokens.div_ceil(GELU_CHUNK);
    list.push(rows("GELU", l, ti * R, 2.0 * ti * R, 25.0 * ti));
    list.push(rows("GELU: backward", l, ti * R, 3.0 * ti * R + F * (chunks * i) as f64, 36.0 * ti));
    list.push(sums("GELU: sum of the bias", l, chunks, i));
    let norm = 4.0 * th * R + statistics;
    let parts = F * (NORM_BLOCKS * 3 * h) as f64;
    list.push(rows("dropout, residual, LayerNorm", 2 * l, norm, norm, (12.0 + drop) * th));
    list.push(rows("the same: backward", 2 * l, norm, norm + parts, (21.0 + drop) * th));
    list.push(sums("the same: sums of gamma, beta, bias", 2 * l, NORM_BLOCKS, 3 * h));
}

fn attention(p: &Pack, list: &mut Vec<Kernel>) {
    let l = p.shape.layers;
    let th = (p.tokens * p.shape.hidden) as f64;
    let product = 2.0 * th * p.attended; // FLOPs of one of attention's products
    let scores = p.tokens as f64 * p.shape.heads as f64 * p.attended;
    let lse = F * (p.tokens * p.shape.heads) as f64;
    let drop = if p.dropout { DROP } else { 0.0 };
    let (forward, backward) = (4.0 * th * R + lse, 8.0 * th * R + lse);
    // a tile of keys has two rows for each column of a head; all but the last leave and fetch dq in f32
    let tiles = (p.attended / (2 * p.shape.head_size()) as f64).ceil().max(1.0);
    let waiting = 2.0 * F * th * (tiles - 1.0);
    list.push(Kernel {
        name: "attention",
        kind: Kind::AttentionForward,
        calls: l,
        must: forward,
        moves: forward,
        flops: 2.0 * product,
        lanes: drop * scores,
    });
    // five products, which FlashAttention-2's rate, the assumption, counts as well; rows of out and dout are
    // read once more for their dot products
    list.push(Kernel {
        name: "attention: backward",
        kind: Kind::AttentionBackward,
        calls: l,
        must: backward,
        moves: backward + th * R + 4.0 * lse + waiting,
        flops: 5.0 * product,
        lanes: drop * scores,
    });
    list.push(sums("attention: sum of the bias of q, k, v", l, p.sequences.max(1), 3 * p.shape.hidden));
}

fn mlm_head(p: &Pack, list: &mut Vec<Kernel>) {
    let (m, h, v) = (p.masked_rows, p.shape.hidden, p.shape.vocab);
    let (mh, mv) = ((p.masked * h) as f64, (p.masked * v) as f64);
    linear(
        list,
        ["MLM transform", "MLM transform: to input", "MLM transform: to weight"],
        1,
        [m, h, h],
        false,
    );
    linear(list, ["MLM decoder", "MLM decoder: to input", "MLM decoder: to weight"], 1, [m, v, h], false);
    let chunks = p.masked.div_ceil(256);
    list.push(rows("MLM loss", 1, 2.0 * mv * R, 2.0 * mv * R, 10.0 * mv));
    list.push(rows("MLM loss: bias", 1, 0.0, mv * R + F * (chunks * v) as f64, mv));
    list.push(sums("MLM loss: sum of the bias", 1, chunks, v));
    list.push(rows("MLM loss: statistics", 1, 0.0, 2.0 * F * p.masked as f64, 0.0));
    list.push(rows("MLM rows: gather, GELU, LayerNorm", 3, 2.0 * mh * R, 2.0 * mh * R, 20.0 * mh));
    list.push(rows("MLM rows: backward", 3, 3.0 * mh * R, 3.0 * mh * R, 30.0 * mh));
    list.push(sums("MLM rows: sums of bias, gamma, beta", 2, NORM_BLOCKS, 2 * h));
}

fn pooler(p: &Pack, list: &mut Vec<Kernel>) {
    let (s, h) = (p.sequences.max(1), p.shape.hidden);
    linear(list, ["pooler", "pooler: to input", "pooler: to weight"], 1, [s, h, h], false);
    let sh = (s * h) as f64;
    list.push(rows("pooler rows and QDPP head", 4, 2.0 * sh * R, 2.0 * sh * R, 20.0 * sh));
}

fn embedding(p: &Pack, list: &mut Vec<Kernel>) {
    let (t, h) = (p.tokens, p.shape.hidden);
    let th = (t * h) as f64;
    let drop = if p.dropout { DROP } else { 0.0 };
    // ids in two passes of the blocks that draw and of the blocks that gather what was drawn
    let words = 8.0 * F * t as f64;
    list.push(rows("mask_tokens", 2, words, words, 60.0 * t as f64));
    // three table rows in (the positions' and segments' stay in cache), sum and result out
    list.push(rows("embeddings", 1, 3.0 * th * R, 3.0 * th * R, (15.0 + drop) * th));
    list.push(rows("cleared gradient", 1, 0.0, th * R, 0.0));
    // the gradient of the sum, in place; LayerNorm's sums
    let parts = F * (NORM_BLOCKS * 2 * h) as f64;
    list.push(rows("embeddings: backward", 1, 2.0 * th * R, 3.0 * th * R + parts, (25.0 + drop) * th));
    list.push(sums("embeddings: sums of gamma, beta", 1, NORM_BLOCKS, 2 * h));
    // rows sorted by id: 128 blocks read all ids twice, from the L2 cache
    list.push(rows("embeddings: sort", 1, 0.0, 4.0 * F * t as f64, 2.0 * 128.0 * 10.0 * t as f64));
    // every row read once more, the gradient of each id that occurs read and written
    let ids = 2.0 * F * (t.min(p.shape.vocab) * h) as f64;
    list.push(rows("embeddings: words", 1, ids, th * R + ids, 2.0 * th));
    list.push(rows("embeddings: words, joined", 1, 0.0, th / 16.0 * F, th / 16.0));
    let places = 2.0 * F * ((p.shape.positions + 2) * h) as f64;
    let parts = F * (512 * 2 * h) as f64;
    list.push(rows("embeddings: positions, segments", 1, places, th * R + places + parts, 3.0 * th));
    list.push(sums("embeddings: sums of segments", 1, 512, 2 * h));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bert_base() -> Shape {
        Shape {
            vocab: 30522,
            hidden: 768,
            layers: 12,
            heads: 12,
            intermediate: 3072,
            positions: 512,
            segments: 2,
        }
    }

    fn pack() -> Pack {
        Pack {
            shape: bert_base(),
            tokens: 16384,
            sequences: 32,
            attended: 512.0,
            masked: 2458,
            masked_rows: 2458,
            mlm: true,
            qdpp: false,
            dropout: true,
            recompute: Recompute::None,
        }
    }

    #[test]
    fn flops_of_bert_base() {
        // by hand at 512: layers 12 (8 * 768² + 4 * 768 * 3072) = 169,869,312; attention 4 * 12 * 512 * 768 =
        // 18,874,368; head .15 (2 * 768² + 2 * 768 * 30522) = 7,209,216; three times their sum
        let at = |s: f64| flops_per_token(&bert_base(), s, 0.15);
        assert!(
            (at(512.0) - 3.0 * (169_869_312.0 + 18_874_368.0 + 7_209_216.0)).abs() < 1.0,
            "{}",
            at(512.0)
        );
        for (s, mega) in [(512.0, 587.9), (256.0, 559.5), (128.0, 545.4)] {
            assert!((at(s) / 1e6 - mega).abs() < 0.06, "{} at {s}", at(s) / 1e6);
        }
        let everywhere = flops_per_token(&bert_base(), 512.0, 1.0);
        assert!((everywhere / at(512.0) - 1.21).abs() < 0.005, "{}", everywhere / at(512.0));
    }

    #[test]
    fn kernels_do_the_work_that_the_formula_counts() {
        let pack = pack();
        let flops: f64 = pack_kernels(&pack).iter().map(|k| k.calls as f64 * k.flops).sum();
        // the formula counts backward attention as four products; one more is recomputed
        let recomputed = 12.0 * 2.0 * (16384 * 768) as f64 * 512.0;
        let formula = 16384.0 * flops_per_token(&pack.shape, 512.0, 2458.0 / 16384.0);
        assert!(((flops - recomputed) / formula - 1.0).abs() < 1e-9, "{flops} {formula}");
        // recomputing whole layers costs one more forward of them: a third of their share
        let twice = Pack { recompute: Recompute::Layer, ..pack.clone() };
        let more: f64 = pack_kernels(&twice).iter().map(|k| k.calls as f64 * k.flops).sum();
        let layers = flops_per_token(&Shape { vocab: 0, ..bert_base() }, 512.0, 0.0) / 3.0 * 16384.0;
        assert!(((more - flops) / layers - 1.0).abs() < 1e-9, "{} {layers}", more - flops);
    }

    #[test]
    fn the_update_moves_34_bytes_a_parameter() {
        // gradient read and cleared 8, master 8, moments 16, bf16 weight 2
        let kernels = update_kernels(&pack(), 1000, 1000);
        assert_eq!(kernels[2].moves, 34_000.0);
        assert_eq!(kernels[0].moves, 4_000.0);
        // 13 inputs, 12 contexts, 24 of the FFNs and 3 of the heads: 52 buffers
        assert_eq!(kernels[3].calls, 7);
    }
}
