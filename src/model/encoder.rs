//! One encoder layer, forward and backward, with its adapters and with what backward computes again.

use super::activations::Recompute;
use super::bert::{Bert, Mode, missing_head};
use super::layout::LayerAt;
use super::lora::Place;
use crate::engine::{Backend, Epilogue, Rows};
use crate::{Error, Result};

impl<B: Backend> Bert<B> {
    pub(super) fn layer_forward(&mut self, l: usize, mode: Mode) -> Result<()> {
        let drops = [1, 2, 3].map(|site| self.dropout(mode, site + 3 * l));
        let heads = self.heads();
        let (b, w, batch) = (&self.backend, &self.weights, &self.batch);
        let at = &self.layout.layers[l];
        let (t, i) = (Rows::Tokens(batch.tokens), self.layout.shape.intermediate);
        let (kept, ffns) = (self.acts.layers.len(), self.acts.ffns.len());
        let (a, f) = (&mut self.acts.layers[l % kept], &mut self.acts.ffns[l % ffns]);
        let [x, next] = input_and_output(&mut self.acts.x, l)?;

        b.linear(x, w, at.qkv, t, Epilogue::Bias, &mut a.qkv)?;
        adapt(b, w, at, Place::Qkv, t, x, &mut a.down, &mut a.qkv)?;
        b.attention(batch, heads, drops[0], &a.qkv, &mut a.lse, &mut a.context)?;
        b.linear(&a.context, w, at.output, t, Epilogue::None, &mut a.sum1)?;
        adapt(b, w, at, Place::Output, t, &a.context, &mut a.down, &mut a.sum1)?;
        let (norm, bias) = (at.attention_norm, at.output.b);
        b.residual_norm(batch, w, bias, norm, drops[1], x, &mut a.sum1, &mut a.stats1, &mut f.normed1)?;

        if at.adapter(Place::Up).is_some() {
            b.linear(&f.normed1, w, at.up, t, Epilogue::Bias, &mut a.pre)?;
            adapt(b, w, at, Place::Up, t, &f.normed1, &mut a.down, &mut a.pre)?;
            b.gelu(&a.pre, t, i, &mut f.act)?;
        } else {
            b.linear_gelu(&f.normed1, w, at.up, t, &mut a.pre, &mut f.act)?;
        }
        b.linear(&f.act, w, at.down, t, Epilogue::None, &mut a.sum2)?;
        adapt(b, w, at, Place::Down, t, &f.act, &mut a.down, &mut a.sum2)?;
        let (norm, bias) = (at.output_norm, at.down.b);
        b.residual_norm(batch, w, bias, norm, drops[2], &f.normed1, &mut a.sum2, &mut a.stats2, next)
    }

    /// Makes this layer's activations what forward had, where layers share buffers; the last layer's
    /// are still there. Every operation gives the same bits again.
    fn restore(&mut self, l: usize) -> Result<()> {
        if l + 1 == self.layout.shape.layers {
            return Ok(());
        }
        match self.recompute {
            Recompute::None => Ok(()),
            Recompute::Layer => self.layer_forward(l, Mode::Train),
            Recompute::GeluNorm => {
                let (b, w, at) = (&self.backend, &self.weights, &self.layout.layers[l]);
                let (t, i) = (Rows::Tokens(self.batch.tokens), self.layout.shape.intermediate);
                let (a, f) = (&mut self.acts.layers[l], &mut self.acts.ffns[0]);
                b.norm(&a.sum1, w, at.attention_norm, t, &mut a.stats1, &mut f.normed1)?;
                b.gelu(&a.pre, t, i, &mut f.act)
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
        let Some(d) = &mut self.acts.backward else { return Err(missing_head("backward")) };
        let (b, w, batch, grads) = (&self.backend, &self.weights, &self.batch, &mut self.grads);
        let at = &self.layout.layers[l];
        let (kept, ffns) = (self.acts.layers.len(), self.acts.ffns.len());
        let (a, f) = (&self.acts.layers[l % kept], &self.acts.ffns[l % ffns]);
        let (t, i) = (Rows::Tokens(batch.tokens), self.layout.shape.intermediate);

        let (norm, bias, sum, st) = (at.output_norm, at.down.b, &a.sum2, &a.stats2);
        let (dx, dnormed, dy) = (&d.dx, &mut d.dnormed, &mut d.dy);
        b.residual_norm_backward(batch, w, bias, norm, drop, sum, st, dx, dnormed, dy, grads)?;
        if learns {
            b.linear_backward_weight(&d.dy, &f.act, at.down, t, grads)?;
        }
        b.linear_backward_input(&d.dy, w, at.down, t, false, &mut d.dact)?;
        if let Some((n, adapter)) = at.adapter(Place::Down) {
            adapter.backward(b, w, t, [&f.act, &a.down[n], &d.dy], &mut d.ddown, &mut d.dact, grads)?;
        }
        b.gelu_backward(&a.pre, &mut d.dact, t, i, learns.then_some(at.up.b), grads)?;
        if learns {
            b.linear_backward_weight(&d.dact, &f.normed1, at.up, t, grads)?;
        }
        b.linear_backward_input(&d.dact, w, at.up, t, true, &mut d.dnormed)?;
        if let Some((n, adapter)) = at.adapter(Place::Up) {
            adapter.backward(
                b,
                w,
                t,
                [&f.normed1, &a.down[n], &d.dact],
                &mut d.ddown,
                &mut d.dnormed,
                grads,
            )?;
        }
        Ok(())
    }

    /// dnormed, the gradient of normed1, to dx, that of the layer's input.
    fn attention_backward(&mut self, l: usize, below: bool) -> Result<()> {
        let drops = [1, 2].map(|site| self.dropout(Mode::Train, site + 3 * l));
        let (heads, learns) = (self.heads(), self.layout.trains_base(l));
        let Some(d) = &mut self.acts.backward else { return Err(missing_head("backward")) };
        let (b, w, batch, grads) = (&self.backend, &self.weights, &self.batch, &mut self.grads);
        let at = &self.layout.layers[l];
        let a = &self.acts.layers[l % self.acts.layers.len()];
        let (x, t) = (&self.acts.x[l], Rows::Tokens(batch.tokens));

        let (norm, bias, sum, st) = (at.attention_norm, at.output.b, &a.sum1, &a.stats1);
        let (dnormed, dx, dy) = (&d.dnormed, &mut d.dx, &mut d.dy);
        b.residual_norm_backward(batch, w, bias, norm, drops[1], sum, st, dnormed, dx, dy, grads)?;
        if learns {
            b.linear_backward_weight(&d.dy, &a.context, at.output, t, grads)?;
        }
        b.linear_backward_input(&d.dy, w, at.output, t, false, &mut d.dcontext)?;
        if let Some((n, adapter)) = at.adapter(Place::Output) {
            let kept = [&a.context, &a.down[n], &d.dy];
            adapter.backward(b, w, t, kept, &mut d.ddown, &mut d.dcontext, grads)?;
        }
        let (qkv, lse, context, bias) = (&a.qkv, &a.lse, &a.context, learns.then_some(at.qkv.b));
        let (dout, dqkv) = (&d.dcontext, &mut d.dqkv);
        b.attention_backward(batch, heads, drops[0], qkv, lse, context, dout, dqkv, bias, grads)?;
        if learns {
            b.linear_backward_weight(&d.dqkv, x, at.qkv, t, grads)?;
        }
        if below {
            b.linear_backward_input(&d.dqkv, w, at.qkv, t, true, &mut d.dx)?;
        }
        if let Some((n, adapter)) = at.adapter(Place::Qkv) {
            adapter.backward(b, w, t, [x, &a.down[n], &d.dqkv], &mut d.ddown, &mut d.dx, grads)?;
        }
        Ok(())
    }
}

/// y += the adapter's product, where there is one at `place`.
#[allow(clippy::too_many_arguments)] // one buffer each, as the engine's operations
fn adapt<B: Backend>(
    b: &B,
    w: &B::Buf<B::Real>,
    at: &LayerAt,
    place: Place,
    t: Rows,
    x: &B::Buf<B::Real>,
    down: &mut [B::Buf<B::Real>],
    y: &mut B::Buf<B::Real>,
) -> Result<()> {
    match at.adapter(place) {
        Some((n, adapter)) => adapter.forward(b, w, t, x, &mut down[n], y),
        None => Ok(()),
    }
}

/// Input and output of layer l: neighbours, or two buffers in turn.
fn input_and_output<T>(x: &mut [T], l: usize) -> Result<[&mut T; 2]> {
    let n = x.len();
    x.get_disjoint_mut([l % n, (l + 1) % n])
        .map_err(|e| Error::config(format!("a model needs at least two layer buffers: {e}")))
}
