//! One encoder layer, forward and backward, with its adapters and with what backward recomputes.

use super::activations::Recompute;
use super::bert::Bert;
use super::lora::{Adapted, AdaptedBackward, Place};
use super::options::{Mode, missing_part};
use crate::Result;
use crate::engine::Engine;
use crate::engine::op::{self, Epilogue};

impl<E: Engine> Bert<E> {
    pub(super) fn layer_forward(&mut self, l: usize, mode: Mode) -> Result<()> {
        self.attention_forward(l, mode)?;
        self.ffn_forward(l, mode)
    }

    /// From the layer's input to normed1.
    fn attention_forward(&mut self, l: usize, mode: Mode) -> Result<()> {
        let [drop, drop_sum] = [1, 2].map(|site| self.dropout(mode, site + 3 * l));
        let heads = self.heads();
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let (layer, rows) = (&self.layout.layers[l], batch.rows());
        let (kept, ffns) = (self.acts.layers.len(), self.acts.ffns.len());
        let (a, f) = (&mut self.acts.layers[l % kept], &mut self.acts.ffns[l % ffns]);
        let x = &self.acts.x[l % self.acts.x.len()];

        let (at, epilogue) = (layer.qkv, Epilogue::Bias);
        engine.run(op::Linear { x, weights, at, rows, epilogue, out: &mut a.qkv })?;
        layer.adapt(engine, Place::Qkv, Adapted { weights, rows, x, down: &mut a.down, y: &mut a.qkv })?;

        let (qkv, lse) = (&a.qkv, &mut a.lse);
        engine.run(op::Attention { batch, heads, drop, qkv, lse, out: &mut a.context })?;

        let (at, epilogue, context) = (layer.output, Epilogue::None, &a.context);
        engine.run(op::Linear { x: context, weights, at, rows, epilogue, out: &mut a.sum1 })?;
        let product = Adapted { weights, rows, x: context, down: &mut a.down, y: &mut a.sum1 };
        layer.adapt(engine, Place::Output, product)?;

        engine.run(op::ResidualNorm {
            batch,
            weights,
            bias: layer.output.b,
            norm: layer.attention_norm,
            drop: drop_sum,
            residual: x,
            y: &mut a.sum1,
            row_stats: &mut a.stats1,
            out: &mut f.normed1,
        })
    }

    /// From normed1 to the layer's output.
    fn ffn_forward(&mut self, l: usize, mode: Mode) -> Result<()> {
        let drop = self.dropout(mode, 3 + 3 * l);
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let (layer, rows, width) = (&self.layout.layers[l], batch.rows(), self.layout.shape.intermediate);
        let (kept, ffns, inputs) = (self.acts.layers.len(), self.acts.ffns.len(), self.acts.x.len());
        let (a, f) = (&mut self.acts.layers[l % kept], &mut self.acts.ffns[l % ffns]);

        let (x, at) = (&f.normed1, layer.up);
        if layer.adapter(Place::Up).is_some() {
            engine.run(op::Linear { x, weights, at, rows, epilogue: Epilogue::Bias, out: &mut a.pre })?;
            layer.adapt(engine, Place::Up, Adapted { weights, rows, x, down: &mut a.down, y: &mut a.pre })?;
            engine.run(op::Gelu { pre: &a.pre, rows, width, act: &mut f.act })?;
        } else {
            engine.run(op::LinearGelu { x, weights, at, rows, pre: &mut a.pre, act: &mut f.act })?;
        }

        let (x, at, epilogue) = (&f.act, layer.down, Epilogue::None);
        engine.run(op::Linear { x, weights, at, rows, epilogue, out: &mut a.sum2 })?;
        layer.adapt(engine, Place::Down, Adapted { weights, rows, x, down: &mut a.down, y: &mut a.sum2 })?;

        engine.run(op::ResidualNorm {
            batch,
            weights,
            bias: layer.down.b,
            norm: layer.output_norm,
            drop,
            residual: &f.normed1,
            y: &mut a.sum2,
            row_stats: &mut a.stats2,
            out: &mut self.acts.x[(l + 1) % inputs],
        })
    }

    /// Recomputes this layer's activations of the forward pass if layers share buffers; the last layer's are
    /// still there. Every operation gives the same bits again.
    fn restore(&mut self, l: usize) -> Result<()> {
        if l + 1 == self.layout.shape.layers {
            return Ok(());
        }
        match self.recompute {
            Recompute::None => Ok(()),
            Recompute::Layer => self.layer_forward(l, Mode::Train),
            Recompute::GeluNorm => {
                let (engine, weights, at) =
                    (&self.engine, &self.weights, self.layout.layers[l].attention_norm);
                let (rows, width) = (self.batch.rows(), self.layout.shape.intermediate);
                let (a, f) = (&mut self.acts.layers[l], &mut self.acts.ffns[0]);
                let (x, row_stats) = (&a.sum1, &mut a.stats1);
                engine.run(op::Norm { x, weights, at, rows, row_stats, out: &mut f.normed1 })?;
                engine.run(op::Gelu { pre: &a.pre, rows, width, act: &mut f.act })
            }
        }
    }

    /// From the gradient of layer l's output in `dx` to that of its input, which is left out where
    /// nothing `below` learns. A frozen layer passes it on and skips its matrices' gradients.
    pub(super) fn layer_backward(&mut self, l: usize, below: bool) -> Result<()> {
        self.restore(l)?;
        self.ffn_backward(l)?;
        self.attention_backward(l, below)
    }

    /// dx, the gradient of the layer's output, to dnormed, that of normed1.
    fn ffn_backward(&mut self, l: usize) -> Result<()> {
        let drop = self.dropout(Mode::Train, 3 + 3 * l);
        let learns = self.layout.trains_base(l);
        let Some(d) = &mut self.acts.backward else { return Err(missing_part("backward")) };
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let grads = &mut self.grads;
        let (layer, rows, width) = (&self.layout.layers[l], batch.rows(), self.layout.shape.intermediate);
        let (kept, ffns) = (self.acts.layers.len(), self.acts.ffns.len());
        let (a, f) = (&self.acts.layers[l % kept], &self.acts.ffns[l % ffns]);

        engine.run(op::ResidualNormBackward {
            batch,
            weights,
            bias: layer.down.b,
            norm: layer.output_norm,
            drop,
            y: &a.sum2,
            row_stats: &a.stats2,
            dout: &d.dx,
            dresidual: &mut d.dnormed,
            dy: &mut d.dy,
            grads,
        })?;

        let (at, dy, x, dx) = (layer.down, &d.dy, &f.act, &mut d.dact);
        if learns {
            engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        }
        engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: false, dx })?;
        let (down, ddown) = (&a.down, &mut d.ddown);
        let product = AdaptedBackward { weights, rows, x, down, dy, ddown, dx, grads };
        layer.adapt_backward(engine, Place::Down, product)?;

        let (pre, bias, dact) = (&a.pre, learns.then_some(layer.up.b), &mut d.dact);
        engine.run(op::GeluBackward { pre, rows, width, bias, dact, grads })?;

        let (at, dy, x, dx) = (layer.up, &d.dact, &f.normed1, &mut d.dnormed);
        if learns {
            engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        }
        engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: true, dx })?;
        let product = AdaptedBackward { weights, rows, x, down, dy, ddown, dx, grads };
        layer.adapt_backward(engine, Place::Up, product)
    }

    /// dnormed, the gradient of normed1, to dx, that of the layer's input.
    fn attention_backward(&mut self, l: usize, below: bool) -> Result<()> {
        let [drop, drop_sum] = [1, 2].map(|site| self.dropout(Mode::Train, site + 3 * l));
        let (heads, learns) = (self.heads(), self.layout.trains_base(l));
        let Some(d) = &mut self.acts.backward else { return Err(missing_part("backward")) };
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let grads = &mut self.grads;
        let (layer, rows) = (&self.layout.layers[l], batch.rows());
        let a = &self.acts.layers[l % self.acts.layers.len()];

        engine.run(op::ResidualNormBackward {
            batch,
            weights,
            bias: layer.output.b,
            norm: layer.attention_norm,
            drop: drop_sum,
            y: &a.sum1,
            row_stats: &a.stats1,
            dout: &d.dnormed,
            dresidual: &mut d.dx,
            dy: &mut d.dy,
            grads,
        })?;

        let (at, dy, x, dx) = (layer.output, &d.dy, &a.context, &mut d.dcontext);
        if learns {
            engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        }
        engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: false, dx })?;
        let (down, ddown) = (&a.down, &mut d.ddown);
        let product = AdaptedBackward { weights, rows, x, down, dy, ddown, dx, grads };
        layer.adapt_backward(engine, Place::Output, product)?;

        engine.run(op::AttentionBackward {
            batch,
            heads,
            drop,
            qkv: &a.qkv,
            lse: &a.lse,
            out: &a.context,
            dout: &d.dcontext,
            dqkv: &mut d.dqkv,
            bias: learns.then_some(layer.qkv.b),
            grads,
        })?;

        let (at, dy, x, dx) = (layer.qkv, &d.dqkv, &self.acts.x[l], &mut d.dx);
        if learns {
            engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        }
        if below {
            engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: true, dx })?;
        }
        let product = AdaptedBackward { weights, rows, x, down, dy, ddown, dx, grads };
        layer.adapt_backward(engine, Place::Qkv, product)
    }
}
