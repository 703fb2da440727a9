//! Low-rank adapters (LoRA, Hu et al. 2022): y = x W' + b + (alpha / rank) x A' B' with A [rank, K]
//! and B [N, rank], beside frozen linear layers of the encoder.
//!
//! Two choices let them use operations that every engine has. B is stored transposed, [rank, N], so that
//! adding its product to y is the operation that adds an input gradient. And alpha / rank is part of the
//! stored B. The function is the same. So is training under Adam, whose step does not depend on the
//! gradient's scale, once B's learning rate is multiplied by alpha / rank too.
//!
//! Adapters of one layer's query, key and value work on one fused product: their A are stacked, [r, H] with r
//! = rank x targets, and their B lie side by side in one [r, 3H]. Its other blocks are zero and stay so (they
//! belong to a frozen group).

pub use super::adapter::{AdapterAt, Block, Place};
use super::layout::{LayerAt, Layout, Param, Table};
use crate::Result;
pub use crate::config::{Lora, Target};
use crate::engine::op::{self, Epilogue, LinearAt};
use crate::engine::{Device, Engine, Floats, Reals, Rows};
use crate::random::{Purpose, philox};

impl Block {
    /// A uniform in +-1 / sqrt(K), as `nn.Linear`; B zero, so that training starts at the base model.
    pub fn initial(&self, param: &Param, seed: u32) -> Vec<f32> {
        if !self.columns.is_empty() {
            return vec![0.0; param.len()];
        }
        let tensor = crc32fast::hash(param.name.as_bytes());
        let bound = 1.0 / (param.shape[1] as f64).sqrt();
        let draw = |i: usize| philox(Purpose::Init.key(seed), [i as u32, 0, 0, tensor])[0];
        let value = |i| ((f64::from(draw(i)) / f64::from(u32::MAX) * 2.0 - 1.0) * bound) as f32;
        (0..param.len()).map(value).collect()
    }
}

impl Lora {
    /// Adds the adapters of one layer to the table.
    pub(super) fn place(
        &self,
        table: &mut Table,
        layer: &str,
        places: [(Place, LinearAt); 4],
    ) -> Vec<AdapterAt> {
        let mut adapters = Vec::new();
        for (place, linear) in places {
            let mut blocks: Vec<usize> =
                self.targets.iter().map(|t| t.place()).filter(|(p, _)| *p == place).map(|(_, b)| b).collect();
            blocks.sort_unstable();
            if blocks.is_empty() {
                continue;
            }
            let width = if place == Place::Qkv { linear.n / 3 } else { linear.n };
            let columns: Vec<_> = blocks.iter().map(|b| b * width..(b + 1) * width).collect();
            let r = self.rank * blocks.len();
            let name = format!("{layer}.{place:?}").to_lowercase();
            let a = Block { lr_scale: 1.0, columns: Vec::new(), rank: self.rank };
            let b = Block { lr_scale: self.alpha / self.rank as f32, columns, rank: self.rank };
            let a = table.adapter(&format!("{name}.lora_A"), &[r, linear.k], a);
            let b = table.adapter(&format!("{name}.lora_B"), &[r, linear.n], b);
            adapters.push(AdapterAt {
                place,
                a: LinearAt { w: a, b: a, n: r, k: linear.k },
                b: LinearAt { w: b, b, n: r, k: linear.n },
            });
        }
        adapters
    }
}

/// Input and output of a product that may have an adapter: y += x A' B; keeps x A'.
pub struct Adapted<'a, D: Device> {
    pub weights: &'a Reals<D>,
    pub rows: Rows,
    /// [T, K]
    pub x: &'a Reals<D>,
    /// x A' of each adapter of the layer, [T, r]; this one's is overwritten.
    pub down: &'a mut [Reals<D>],
    /// [T, N]
    pub y: &'a mut Reals<D>,
}

/// From dy and what forward kept: adds the gradients of A and B, and the adapter's part to dx.
pub struct AdaptedBackward<'a, D: Device> {
    pub weights: &'a Reals<D>,
    pub rows: Rows,
    /// [T, K]
    pub x: &'a Reals<D>,
    /// x A' of each adapter of the layer, [T, r].
    pub down: &'a [Reals<D>],
    /// [T, N]
    pub dy: &'a Reals<D>,
    /// [T, r], overwritten.
    pub ddown: &'a mut Reals<D>,
    /// [T, K]
    pub dx: &'a mut Reals<D>,
    pub grads: &'a mut Floats<D>,
}

impl LayerAt {
    /// The adapter beside the product at `place`, and its number in the layer.
    pub fn adapter(&self, place: Place) -> Option<(usize, &AdapterAt)> {
        self.adapters.iter().enumerate().find(|(_, adapter)| adapter.place == place)
    }

    /// Forward of the adapter at `place`, where there is one.
    pub fn adapt<E: Engine>(&self, engine: &E, place: Place, product: Adapted<'_, E>) -> Result<()> {
        let Some((n, at)) = self.adapter(place) else { return Ok(()) };
        let Adapted { weights, rows, x, down, y } = product;
        let down = &mut down[n];
        engine.run(op::Linear { x, weights, at: at.a, rows, epilogue: Epilogue::None, out: down })?;
        engine.run(op::LinearBackwardInput { dy: down, weights, at: at.b, rows, accumulate: true, dx: y })
    }

    /// Its backward.
    pub fn adapt_backward<E: Engine>(
        &self,
        engine: &E,
        place: Place,
        product: AdaptedBackward<'_, E>,
    ) -> Result<()> {
        let Some((n, at)) = self.adapter(place) else { return Ok(()) };
        let AdaptedBackward { weights, rows, x, down, dy, ddown, dx, grads } = product;
        engine.run(op::Linear { x: dy, weights, at: at.b, rows, epilogue: Epilogue::None, out: ddown })?;
        engine.run(op::LinearBackwardWeight { dy: &down[n], x: dy, at: at.b, rows, grads })?;
        engine.run(op::LinearBackwardWeight { dy: ddown, x, at: at.a, rows, grads })?;
        engine.run(op::LinearBackwardInput { dy: ddown, weights, at: at.a, rows, accumulate: true, dx })
    }
}

impl Layout {
    /// Adapters, each with its linear layer.
    fn adapters(&self) -> impl Iterator<Item = (&AdapterAt, LinearAt)> {
        self.layers.iter().flat_map(|layer| {
            layer.adapters.iter().map(|adapter| {
                let linear = match adapter.place {
                    Place::Qkv => layer.qkv,
                    Place::Output => layer.output,
                    Place::Up => layer.up,
                    Place::Down => layer.down,
                };
                (adapter, linear)
            })
        })
    }

    /// Elements that the widest adapter keeps for each token; 0 without adapters.
    pub fn adapter_width(&self) -> usize {
        self.adapters().map(|(adapter, _)| adapter.a.n).max().unwrap_or(0)
    }

    /// Adds each adapter's product to the matrix of its linear layer: `arena` [len] then holds a plain model
    /// with the same scores.
    pub fn merge_adapters(&self, arena: &mut [f32]) {
        for (adapter, linear) in self.adapters() {
            let (a, b) = (adapter.a, adapter.b);
            for n in 0..linear.n {
                let mut row = vec![0.0f64; linear.k];
                for j in 0..a.n {
                    let factor = f64::from(arena[b.w + j * b.k + n]);
                    let low = &arena[a.w + j * a.k..][..a.k];
                    row.iter_mut().zip(low).for_each(|(sum, &x)| *sum += factor * f64::from(x));
                }
                let weights = &mut arena[linear.w + n * linear.k..][..linear.k];
                weights.iter_mut().zip(row).for_each(|(w, x)| *w = (f64::from(*w) + x) as f32);
            }
        }
    }
}
