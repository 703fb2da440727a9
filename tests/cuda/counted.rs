//! The engine that only counts against the software device: a step's launches by kernel and the bytes allocated are
//! equal, for every way to train.

use std::collections::BTreeMap;
use std::ops::Range;

use ctune_dist::Result;
use ctune_dist::config::{Optimizer, Sharding, Train};
use ctune_dist::data::batch::Batch;
use ctune_dist::doctor::sample;
use ctune_dist::engine::cuda::{Cuda, CudaBuf, Settings};
use ctune_dist::engine::dry::{Dry, DryBuf};
use ctune_dist::engine::op::{Aggregate, RankLoss};
use ctune_dist::engine::{Device, Engine, Real};
use ctune_dist::model::activations::{Capacity, Recompute};
use ctune_dist::model::bert::Options;
use ctune_dist::model::lora::{Lora, Target};
use ctune_dist::model::{Bert, HeadSet, Layout, Mode, Objective, Shape, Tuning};
use ctune_dist::ranks::Collective;
use ctune_dist::train::optimiser::Optimiser;

use crate::softgpu::{self, child};

const VOCAB: usize = 301;

/// A collective that changes nothing: one rank's launches do not depend on the others'.
struct Unheard;

macro_rules! unheard {
    ($engine:ident, $buffer:ident) => {
        impl<R: Real> Collective<$engine<R>> for Unheard {
            fn all_reduce(&mut self, _: &$engine<R>, _: &mut $buffer<f32>, _: Range<usize>) -> Result<()> {
                Ok(())
            }
            fn reduce_scatter(
                &mut self,
                _: &$engine<R>,
                _: &mut $buffer<f32>,
                _: &[Range<usize>],
            ) -> Result<()> {
                Ok(())
            }
            fn all_gather(&mut self, _: &$engine<R>, _: &mut $buffer<R>, _: &[Range<usize>]) -> Result<()> {
                Ok(())
            }
            fn finish(&mut self, _: &$engine<R>) -> Result<()> {
                Ok(())
            }
        }
    };
}
unheard!(Cuda, CudaBuf);
unheard!(Dry, DryBuf);

/// A way to train.
struct Way {
    name: &'static str,
    objective: Objective,
    tuning: Tuning,
    train: Train,
    dropout: f32,
    ranks: usize,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            name: "both objectives",
            objective: Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
            tuning: Tuning::default(),
            train: Train::default(),
            dropout: 0.1,
            ranks: 1,
        }
    }
}

fn ways() -> Vec<Way> {
    let recompute = |name, recompute| Way {
        name,
        tuning: Tuning { recompute, ..Tuning::default() },
        train: Train { recompute, ..Train::default() },
        ..Way::default()
    };
    let ranking =
        |name, how| Way { name, objective: Objective::Ranking(RankLoss::Lce, how), ..Way::default() };
    let targets = vec![Target::Query, Target::Intermediate];
    let lora = Some(Lora { rank: 8, alpha: 16.0, targets });
    let freeze = vec!["embeddings".into(), "layer.0".into()];
    vec![
        Way::default(),
        Way { name: "no dropout", dropout: 0.0, ..Way::default() },
        Way {
            name: "MLM alone",
            objective: Objective::Pretraining { mlm: 1.0, qdpp: 0.0 },
            ..Way::default()
        },
        Way {
            name: "QDPP alone",
            objective: Objective::Pretraining { mlm: 0.0, qdpp: 1.0 },
            ..Way::default()
        },
        recompute("recompute gelu-norm", Recompute::GeluNorm),
        recompute("recompute layer", Recompute::Layer),
        Way { name: "frozen layers", tuning: Tuning { freeze, ..Tuning::default() }, ..Way::default() },
        Way {
            name: "LAMB",
            train: Train { optimizer: Optimizer::Lamb, ..Train::default() },
            ..Way::default()
        },
        Way {
            name: "a shard of four",
            train: Train { sharding: Sharding::Optimizer, ..Train::default() },
            ranks: 4,
            ..Way::default()
        },
        ranking("fine", None),
        ranking("fine with passages", Some(Aggregate::MaxP)),
        Way { tuning: Tuning { lora, ..Tuning::default() }, ..ranking("fine with LoRA", None) },
    ]
}

impl Way {
    fn heads(&self) -> HeadSet {
        match self.objective {
            Objective::Pretraining { .. } => HeadSet::PRETRAINING,
            Objective::Ranking(..) => HeadSet::RANKING,
        }
    }

    fn pack(&self) -> Batch {
        let mut pack = sample::pack(VOCAB);
        match self.objective {
            Objective::Pretraining { mlm, .. } if mlm > 0.0 => {}
            Objective::Ranking(_, how) => {
                pack.masked = 0;
                if how.is_none() {
                    (pack.cu_documents, pack.cu_groups) = (Vec::new(), vec![0, 2, 5]);
                    pack.targets = vec![1.0, 0.0, 1.0, 0.0, 0.0];
                }
            }
            _ => pack.masked = 0,
        }
        pack
    }

    fn options(&self, pack: &Batch) -> Options {
        Options {
            objective: self.objective,
            heads: self.heads(),
            capacity: Capacity { tokens: 700, sequences: 40, masked: if pack.masked > 0 { 150 } else { 0 } },
            train: true,
            dropout: self.dropout,
            seed: 1,
            rule: (pack.masked > 0).then(|| sample::rule(VOCAB)),
            continues: vec![0; VOCAB],
        }
    }

    /// Two steps on `engine`; `between` is called before the second and after it.
    fn steps<E: Engine>(&self, engine: &E, mut between: impl FnMut())
    where
        Unheard: Collective<E>,
    {
        let shape = Shape { layers: 3, ..sample::shapes()[1].clone() };
        let layout: Layout = self.tuning.layout(&shape, self.heads()).unwrap();
        let pack = self.pack();
        let (options, recompute) = (self.options(&pack), self.tuning.recompute);
        let mut model = Bert::laid_out(engine.clone(), layout, options, recompute).unwrap();
        let mut optimiser = Optimiser::new(&model, 0, self.ranks, &self.train).unwrap();
        for _ in 0..2 {
            between();
            model.forward(&pack, Mode::Train).unwrap();
            model.backward(&pack, &mut |_, _, _| Ok(())).unwrap();
            optimiser.join(&mut Unheard, &mut model).unwrap();
            optimiser.step(&mut Unheard, &mut model, 1e-3).unwrap().wait().unwrap();
        }
        between();
    }

    fn check<R: Real>(&self) {
        let kernel_cache = Some(softgpu::library_path().join("images"));
        let settings = Settings { graph: false, kernel_cache, ..Settings::default() };
        let gpu = Cuda::<R>::new(0, settings).unwrap();
        let before = gpu.device().allocated();
        let (mut launched, mut allocated) = (BTreeMap::new(), 0);
        self.steps(&gpu, || {
            launched = softgpu::take_enqueued();
            allocated = gpu.device().allocated() - before;
        });
        // copies of packs and results are no launches
        launched.retain(|name, _| !name.starts_with("cuMemcpy"));
        let renamed = [("product", "cublasLtMatmul"), ("clear", "cuMemsetD8Async")];
        let dry = Dry::<R>::new(gpu.gpu().unwrap());
        let before = dry.bytes();
        let (mut counted, mut bytes) = (BTreeMap::new(), 0);
        self.steps(&dry, || {
            counted = dry.take_counts().launches;
            bytes = dry.bytes() - before;
        });
        for (ours, theirs) in renamed {
            if let Some(count) = counted.remove(ours) {
                counted.insert(theirs.to_owned(), count);
            }
        }
        assert_eq!(counted, launched, "{} in {}: launches", self.name, R::NAME);
        assert_eq!(bytes, allocated, "{} in {}: bytes", self.name, R::NAME);
        let all: usize = counted.values().sum();
        println!("{} in {}: {all} launches, {bytes} bytes", self.name, R::NAME);
        assert!(all > 50, "{}: {all} launches", self.name);
    }
}

/// In a process of its own, as the software device counts for the whole process.
#[test]
fn what_is_counted_is_what_is_launched_and_allocated() {
    const TEST: &str = "cuda::counted::what_is_counted_is_what_is_launched_and_allocated";
    if child::role().is_none() {
        let output = child::command(TEST, "count").output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}");
        return;
    }
    softgpu::load();
    for way in ways() {
        way.check::<f32>();
        way.check::<half::bf16>();
    }
}
