//! Which parameters learn, and how fast: frozen parts, learning rates that fall with depth, and the
//! contiguous ranges of the arena that the optimiser treats alike.

use std::ops::Range;

use super::layout::{Layout, Param};
use crate::engine::op::ParamGroup;
use crate::{Error, Result};

/// Learning rates relative to `train.lr`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// For heads that start fresh in fine-tuning.
    pub head: f32,
    /// Multiplied once for every layer above a parameter's own (BEiT, Bao et al. 2022); 1 treats all
    /// layers alike.
    pub layer_decay: f64,
}

impl Rates {
    /// Every parameter at `train.lr`.
    pub const EQUAL: Self = Self { head: 1.0, layer_decay: 1.0 };
}

impl Layout {
    /// Freezes parts by name: "embeddings", "layer.3", "layer.0-3". The word embedding is also the
    /// MLM head's decoder, so freezing the embeddings freezes that matrix in both places.
    ///
    /// # Errors
    /// `Error::Config` for a part that the model does not have.
    pub fn freeze(&mut self, parts: &[String]) -> Result<()> {
        for part in parts {
            let depths = self.depths(part).ok_or_else(|| {
                Error::config(format!(
                    "train.freeze: \"{part}\" is not a part of a model with {} layers: parts are \
                    \"embeddings\", \"layer.0\", \"layer.0-{}\"",
                    self.shape.layers,
                    self.shape.layers.saturating_sub(1)
                ))
            })?;
            for param in self.params.iter_mut().filter(|p| depths.contains(&p.depth)) {
                param.trained = false;
            }
        }
        Ok(())
    }

    /// The depths that a part's name stands for: 0 is the embeddings, l + 1 layer l.
    fn depths(&self, part: &str) -> Option<Range<usize>> {
        if part == "embeddings" {
            return Some(0..1);
        }
        let numbers = part.strip_prefix("layer.")?;
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < self.shape.layers).then_some(first + 1..last + 2)
    }

    /// Whether any parameter at `depth` learns (0: embeddings, l + 1: layer l, L + 1: heads).
    pub fn trains(&self, depth: usize) -> bool {
        self.params.iter().any(|p| p.trained && p.depth == depth)
    }

    /// Whether layer `l`'s own parameters learn; its adapters may learn even if they do not.
    pub fn trains_base(&self, l: usize) -> bool {
        self.params.iter().any(|p| p.trained && p.depth == l + 1 && p.block.is_none())
    }

    /// The lowest depth at which something learns: backward ends there.
    pub fn lowest_trained(&self) -> usize {
        self.params.iter().filter(|p| p.trained).map(|p| p.depth).min().unwrap_or(self.shape.layers + 1)
    }

    /// From the first to the last element of `bucket` that learns; `None` where none does.
    pub fn span(&self, bucket: &Range<usize>) -> Option<Range<usize>> {
        let inside = |p: &&Param| p.trained && bucket.contains(&p.offset);
        let first = self.params.iter().find(inside)?.offset;
        let last = self.params.iter().rev().find(inside)?;
        // up to the next tensor's start, so that shares may be cut at aligned elements
        Some(first..last.range().end.next_multiple_of(super::layout::ALIGN).min(bucket.end))
    }

    /// Contiguous ranges with equal treatment by the optimiser, ascending; frozen ones have
    /// `lr_scale` 0. With `tensors`, one group a tensor (LAMB adapts tensor by tensor).
    pub fn groups(&self, rates: Rates, tensors: bool) -> Vec<ParamGroup> {
        let mut groups: Vec<ParamGroup> = Vec::new();
        for param in &self.params {
            for (range, trained) in param.parts() {
                let lr_scale = if trained { self.lr_scale(param, rates) } else { 0.0 };
                match groups.last_mut() {
                    Some(last) if !tensors && last.decay == param.decay && last.lr_scale == lr_scale => {
                        last.range.end = range.end;
                    }
                    _ => groups.push(ParamGroup { range, decay: param.decay, lr_scale }),
                }
            }
        }
        groups
    }

    fn lr_scale(&self, param: &Param, rates: Rates) -> f32 {
        let own = match &param.block {
            _ if param.head => f64::from(rates.head),
            Some(block) => f64::from(block.lr_scale),
            None => 1.0,
        };
        let above = (self.shape.layers + 1 - param.depth) as i32;
        (own * rates.layer_decay.powi(above)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::HeadSet;
    use super::super::shape::Shape;
    use super::*;

    fn layout() -> Layout {
        let shape = Shape {
            vocab: 101,
            hidden: 16,
            layers: 3,
            heads: 2,
            intermediate: 40,
            positions: 32,
            segments: 2,
            norm_eps: Shape::NORM_EPS,
        };
        Layout::new(&shape, HeadSet::RANKING).unwrap()
    }

    /// Groups that hold the parameter.
    fn of<'a>(groups: &'a [ParamGroup], param: &Param) -> Vec<&'a ParamGroup> {
        let holds = |g: &&ParamGroup| g.range.start <= param.offset && param.range().end <= g.range.end;
        groups.iter().filter(holds).collect()
    }

    #[test]
    fn groups_cover_every_parameter_once_with_its_decay() {
        let layout = layout();
        for tensors in [false, true] {
            let groups = layout.groups(Rates { head: 10.0, layer_decay: 1.0 }, tensors);
            for param in &layout.params {
                let of = of(&groups, param);
                assert_eq!(of.len(), 1, "{}", param.name);
                assert_eq!(of[0].decay, param.decay);
                assert_eq!(of[0].lr_scale, if param.name.starts_with("classifier") { 10.0 } else { 1.0 });
            }
            assert_eq!(groups.len() == layout.params.len(), tensors);
        }
    }

    #[test]
    fn deeper_layers_learn_more_slowly_and_frozen_ones_not_at_all() {
        let mut layout = layout();
        layout.freeze(&["embeddings".into(), "layer.0-1".into()]).unwrap();
        assert_eq!(layout.lowest_trained(), 3);
        assert_eq!(layout.span(&layout.embed_range), None);
        assert_eq!(layout.span(&layout.layers[2].range), Some(layout.layers[2].range.clone()));
        let groups = layout.groups(Rates { head: 1.0, layer_decay: 0.5 }, false);
        for param in &layout.params {
            let expected = if param.depth < 3 { 0.0 } else { 0.5f32.powi(4 - param.depth as i32) };
            assert_eq!(of(&groups, param)[0].lr_scale, expected, "{}", param.name);
        }
        for bad in ["layer.3", "layer.1-0", "layer", "layer.x", "pooler", "layer.0-3"] {
            let error = layout.freeze(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("train.freeze") && error.contains("3 layers"), "{error}");
        }
    }
}
