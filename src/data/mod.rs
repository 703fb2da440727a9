//! Shards to packed batches: order, negatives, packing, masking, prefetch.

pub mod batch;
