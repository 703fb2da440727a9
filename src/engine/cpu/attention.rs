//! Multi-head attention over packed sequences. A task is one head of one sequence: its keys and values are
//! put into the tile's layout once, then queries are processed a block at a time, so that scores never leave
//! the second-level cache.
//!
//! Products work on cells (`cell`). Where a cell is a pair of bf16, probabilities and score
//! gradients are rounded to bf16 for the products that they enter, and the factor 1 / sqrt(D) is applied
//! to f32 results and not to the keys.

mod backward;
mod cells;
mod forward;
mod task;

use self::backward::{Backward, Kept};
use self::forward::Forward;
use self::task::{Layout, Task};
use super::checks::{part, part_mut};
use super::columns::add_columns;
use super::device::Cpu;
use super::machine::Operand;
use super::tasks::{Shared, each_index};
use crate::Result;
use crate::engine::op;

pub(super) fn attention<R: Operand>(cpu: &Cpu<R>, op: &mut op::Attention<'_, Cpu<R>>) -> Result<()> {
    let (t, heads, h) = (op.batch.tokens, op.heads.heads, op.heads.hidden());
    let layout = Layout::of(op.batch, op.heads, op.drop)?;
    let qkv = part("attention qkv", op.qkv, 0, 3 * t * h)?;
    let lse = Shared::new(part_mut("attention lse", op.lse, 0, t * heads)?);
    let out = Shared::new(part_mut("attention out", op.out, 0, t * h)?);
    let (machine, pool) = (cpu.machine, &*cpu.pool);
    each_index(layout.tasks(), &|index| {
        let task = Task::new(layout, index);
        let mut scratch = pool.take(task.sizes.forward_scratch());
        R::run(machine, Forward { task, qkv, lse, out, scratch: &mut scratch });
    });
    Ok(())
}

pub(super) fn attention_backward<R: Operand>(
    cpu: &Cpu<R>,
    op: &mut op::AttentionBackward<'_, Cpu<R>>,
) -> Result<()> {
    let (t, heads, h) = (op.batch.tokens, op.heads.heads, op.heads.hidden());
    let kept = Kept {
        qkv: part("attention qkv", op.qkv, 0, 3 * t * h)?,
        lse: part("attention lse", op.lse, 0, t * heads)?,
        out: part("attention out", op.out, 0, t * h)?,
        dout: part("attention dout", op.dout, 0, t * h)?,
    };
    let gradient = part_mut("attention dqkv", op.dqkv, 0, 3 * t * h)?;
    let dqkv = Shared::new(&mut *gradient);
    let layout = Layout::of(op.batch, op.heads, op.drop)?;
    let (machine, pool) = (cpu.machine, &*cpu.pool);
    each_index(layout.tasks(), &|index| {
        let task = Task::new(layout, index);
        let mut scratch = pool.take(task.sizes.backward_scratch());
        R::run(machine, Backward { task, kept, dqkv, scratch: &mut scratch });
    });
    if let Some(at) = op.bias {
        add_columns(machine.arch, gradient, part_mut("attention bias gradient", op.grads, at, 3 * h)?);
    }
    Ok(())
}
