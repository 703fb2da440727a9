//! `doctor`: what this machine has for training, and whether its GPU computes what the CPU computes.

pub mod trial;
