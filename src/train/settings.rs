//! Translates the plan's settings into the terms of the model and the engine: the plan knows neither, and
//! neither knows the plan.

use crate::config::{self, Fine, FineLoss, Lora, Train, TrainPassages};
use crate::engine::op::{Aggregate, RankLoss};
use crate::model::{Objective, Tuning};

/// What training adds, freezes and recomputes.
pub fn tuning(train: &Train, lora: Option<&Lora>) -> Tuning {
    Tuning { lora: lora.cloned(), freeze: train.freeze.clone(), recompute: train.recompute }
}

/// What fine-tuning learns. Training combines the scores of passages only if it reads all passages of a
/// document.
pub fn ranking(fine: &Fine) -> Objective {
    let loss = match fine.loss {
        FineLoss::Lce => RankLoss::Lce,
        FineLoss::PairwiseSoftmax => RankLoss::PairwiseSoftmax,
        FineLoss::Hinge => RankLoss::Hinge { margin: fine.margin },
        FineLoss::Pointwise => RankLoss::Pointwise,
        FineLoss::ListNet => RankLoss::ListNet,
        FineLoss::MarginMse => RankLoss::MarginMse,
    };
    let together = fine.train_passages == TrainPassages::All;
    Objective::Ranking(loss, together.then_some(fine.aggregate.into()))
}

impl From<config::Aggregate> for Aggregate {
    fn from(how: config::Aggregate) -> Self {
        match how {
            config::Aggregate::FirstP => Self::FirstP,
            config::Aggregate::MaxP => Self::MaxP,
            config::Aggregate::SumP => Self::SumP,
            config::Aggregate::AvgP => Self::AvgP,
        }
    }
}
