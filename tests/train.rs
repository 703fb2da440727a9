//! Training beyond one forward and backward: optimisers and schedules against PyTorch and
//! transformers, what is frozen, adapted, shared between ranks or computed twice.

mod adapters;
mod check;
mod optimisers;
mod recompute;
mod speed;
mod stages;
