//! The same call gives the same bits: twice, and on any number of threads. One small encoder layer
//! with every operation that sums over rows goes through the whole sequence.

use super::support::*;
use ctune_dist::engine::cpu::{Cpu, Operand};
use ctune_dist::engine::op::{
    self, Dropout, EmbedAt, Epilogue, Heads, LinearAt, LossScale, NormAt, ParamGroup, UpdateRule,
};
use ctune_dist::engine::{DeviceBatch, Engine, Floats, Real, Reals, Rows, stats};

const H: usize = 96;
const I: usize = 400;
const V: usize = 700;

const HEADS: Heads = Heads { heads: 3, size: 32 };

/// Offsets of a tiny model.
struct Places {
    norm: NormAt,
    embed: EmbedAt,
    qkv: LinearAt,
    ffn: LinearAt,
    decoder: LinearAt,
    size: usize,
}

fn places() -> Places {
    let norm = NormAt { gamma: 0, beta: H, hidden: H, eps: 1e-12 };
    let mut at = 2 * H;
    let mut take = |n: usize| {
        at += n;
        at - n
    };
    let embed = EmbedAt { word: take(V * H), position: take(512 * H), segment: take(2 * H), norm, vocab: V };
    let [qkv, ffn, decoder] =
        [(3 * H, H), (I, H), (V, H)].map(|(n, k)| LinearAt { w: take(n * k), b: take(n), n, k });
    Places { norm, embed, qkv, ffn, decoder, size: at }
}

fn drop(site: u32) -> Dropout {
    Dropout::new(0.1, 3, site)
}

/// A layer between embedding and MLM loss, with what forward leaves.
struct Layer<E: Engine> {
    batch: DeviceBatch<E>,
    start: Vec<f32>,
    weights: Reals<E>,
    grads: Floats<E>,
    sum: Reals<E>,
    row_stats: Floats<E>,
    x: Reals<E>,
    qkv: Reals<E>,
    lse: Floats<E>,
    context: Reals<E>,
    stats2: Floats<E>,
    normed: Reals<E>,
    act: Reals<E>,
    logits: Reals<E>,
    sums: Floats<E>,
}

impl<E: Engine> Layer<E> {
    fn new(cpu: &E, pack: &Pack) -> Self {
        let start: Vec<f32> = random(places().size, 1).iter().map(|x| x * 0.1).collect();
        let t = pack.tokens();
        Self {
            batch: pack.device(cpu),
            weights: poisoned(cpu, &start),
            grads: poisoned(cpu, &vec![0.0; start.len()]),
            start,
            sum: unwritten(cpu, t * H),
            row_stats: unwritten(cpu, t * 2),
            x: unwritten(cpu, t * H),
            qkv: unwritten(cpu, t * 3 * H),
            lse: unwritten(cpu, t * HEADS.heads),
            context: unwritten(cpu, t * H),
            stats2: unwritten(cpu, t * 2),
            normed: unwritten(cpu, t * H),
            act: unwritten(cpu, t * I),
            logits: unwritten(cpu, t * V),
            sums: cpu.zeros(stats::SLOTS).unwrap(),
        }
    }

    fn forward(&mut self, cpu: &E) {
        let at = places();
        let Self { batch, weights, grads, sum, row_stats, x, qkv, lse, context, .. } = self;
        let Self { stats2, normed, act, logits, sums, .. } = self;
        let (t, rows) = (batch.tokens, batch.rows());
        cpu.run(op::Embed { batch, weights, at: at.embed, drop: drop(0), sum, row_stats, out: x }).unwrap();
        cpu.run(op::Linear { x, weights, at: at.qkv, rows, epilogue: Epilogue::Bias, out: qkv }).unwrap();
        cpu.run(op::Attention { batch, heads: HEADS, drop: drop(1), qkv, lse, out: context }).unwrap();
        cpu.run(op::ResidualNorm {
            batch,
            weights,
            bias: 0,
            norm: at.norm,
            drop: drop(2),
            residual: x,
            y: context,
            row_stats: stats2,
            out: normed,
        })
        .unwrap();
        let pre = &mut unwritten(cpu, t * I);
        cpu.run(op::LinearGelu { x: normed, weights, at: at.ffn, rows, pre, act }).unwrap();
        let (at, epilogue) = (at.decoder, Epilogue::None);
        cpu.run(op::Linear { x: normed, weights, at, rows, epilogue, out: logits }).unwrap();
        cpu.run(op::MlmLoss {
            weights,
            bias: at.b,
            vocab: V,
            labels: &indices(cpu, &(0..t as u32).map(|i| i * 7 % V as u32).collect::<Vec<_>>()),
            rows: Rows::Masked(t),
            scale: LossScale { weight: 1.0, value: 0.01 },
            logits,
            grads,
            sums,
        })
        .unwrap();
    }

    /// The gradient of q, k and v.
    fn backward(&mut self, cpu: &E) -> Reals<E> {
        let places = places();
        let Self { batch, weights, grads, sum, row_stats, x, qkv, lse, context, .. } = self;
        let Self { stats2, normed, act, logits, .. } = self;
        let (t, rows) = (batch.tokens, batch.rows());
        let (d, dresidual) = (&mut unwritten(cpu, t * H), &mut unwritten(cpu, t * H));
        let (dy, mut dqkv) = (&mut unwritten(cpu, t * H), unwritten(cpu, t * 3 * H));
        let at = places.decoder;
        cpu.run(op::LinearBackwardInput { dy: logits, weights, at, rows, accumulate: false, dx: d }).unwrap();
        cpu.run(op::LinearBackwardWeight { dy: logits, x: normed, at, rows, grads }).unwrap();
        cpu.run(op::LinearBackwardWeight { dy: act, x: normed, at: places.ffn, rows, grads }).unwrap();
        cpu.run(op::ResidualNormBackward {
            batch,
            weights,
            bias: 0,
            norm: places.norm,
            drop: drop(2),
            y: context,
            row_stats: stats2,
            dout: d,
            dresidual,
            dy,
            grads,
        })
        .unwrap();
        cpu.run(op::AttentionBackward {
            batch,
            heads: HEADS,
            drop: drop(1),
            qkv,
            lse,
            out: x,
            dout: dy,
            dqkv: &mut dqkv,
            bias: Some(places.qkv.b),
            grads,
        })
        .unwrap();
        let (at, dx) = (places.qkv, &mut *dresidual);
        cpu.run(op::LinearBackwardInput { dy: &dqkv, weights, at, rows, accumulate: true, dx }).unwrap();
        let (at, drop, dout) = (places.embed, drop(0), dresidual);
        cpu.run(op::EmbedBackward { batch, weights, at, drop, sum, row_stats, dout, grads }).unwrap();
        dqkv
    }

    /// One update; gives the squared norm.
    fn update(&mut self, cpu: &E) -> Floats<E> {
        let size = self.start.len();
        let (mut norm_sq, owned) = (cpu.zeros(1).unwrap(), &vec![0..size; 1]);
        let Self { weights, grads, .. } = self;
        cpu.run(op::SumSquares { src: grads, ranges: owned, out: &mut norm_sq, slot: 0 }).unwrap();
        cpu.run(op::AdamWUpdate {
            rule: UpdateRule {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                step: 1,
                clip_norm: 1.0,
            },
            groups: &[ParamGroup { range: 0..size, decay: true, lr_scale: 1.0 }],
            owned,
            norm_sq: &norm_sq,
            weights,
            master: &mut poisoned(cpu, if <E::Real>::NARROW { &self.start } else { &[] }),
            grads,
            moment1: &mut cpu.zeros(size).unwrap(),
            moment2: &mut cpu.zeros(size).unwrap(),
        })
        .unwrap();
        norm_sq
    }
}

/// Everything that came out, as bits.
fn run<E: Engine>(cpu: &E) -> Vec<u32> {
    let pack = Pack::new(&[1, 200, 63, 65, 2, 300], V as u32);
    let (mut layer, t) = (Layer::new(cpu, &pack), pack.tokens());
    layer.forward(cpu);
    let dqkv = layer.backward(cpu);
    let gradients = taken(cpu, &layer.grads, layer.start.len());
    let norm_sq = layer.update(cpu);
    let weights = taken(cpu, &layer.weights, layer.start.len());
    let kept = [
        taken(cpu, &layer.act, t * I),
        taken(cpu, &layer.logits, t * V),
        taken(cpu, &dqkv, 3 * t * H),
        weights,
    ];
    let sums = cpu.download(&layer.sums, 0..stats::SLOTS).unwrap();
    let all = [kept.concat(), gradients, sums, cpu.download(&norm_sq, 0..1).unwrap()].concat();
    all.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn same_bits_on_any_number_of_threads() {
    on_engines!(threads_case);
}

fn threads_case<E: Engine + Sync>(engine: &E) {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(engine))
    };
    let first = on(1);
    assert!(first.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    for threads in [1, 2, 3] {
        assert!(on(threads) == first, "{threads} threads");
    }
    // The first run had fresh scratch, the others find old values in it.
}

/// Without AVX-512, and without any vectors at all.
#[test]
fn same_bits_with_any_instruction_set() {
    instructions_case(&Cpu::<f32>::default());
    instructions_case(&Cpu::<half::bf16>::default().widening());
}

fn instructions_case<R: Operand>(engine: &Cpu<R>)
where
    Cpu<R>: Engine,
{
    let best = run(engine);
    assert!(run(&Cpu::<R>::with(pulp::Arch::Scalar)) == best, "scalar");
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = pulp::x86::V3::try_new() {
        assert!(run(&Cpu::<R>::with(pulp::Arch::V3(v3))) == best, "AVX2");
    }
}

/// A sequence's result does not depend on what it is packed with.
#[test]
fn packed_equals_alone() {
    on_engines!(packed_case);
}

fn packed_case<E: Engine>(cpu: &E) {
    let together = Pack::new(&[65, 64, 200], 50);
    let rows = random(3 * together.tokens() * H, 5);
    let attend = |pack: &Pack, rows: &[f32]| {
        let t = pack.tokens();
        let (batch, qkv) = (&pack.device(cpu), &poisoned(cpu, rows));
        let (lse, out) = (&mut unwritten(cpu, t * HEADS.heads), &mut unwritten(cpu, t * H));
        cpu.run(op::Attention { batch, heads: HEADS, drop: drop(1), qkv, lse, out }).unwrap();
        taken(cpu, out, t * H)
    };
    let all = attend(&together, &rows);
    for i in 0..3 {
        let own = together.cu_seqlens[i] as usize..together.cu_seqlens[i + 1] as usize;
        let mut alone = Pack::new(&[own.len()], 50);
        alone.samples = vec![together.samples[i]];
        let got = attend(&alone, &rows[3 * own.start * H..3 * own.end * H]);
        assert!(got == all[own.start * H..own.end * H], "sequence {i}");
    }
}
