//! Large matrix products. The classic scheme (Goto & van de Geijn 2008): blocks of both operands are packed
//! into the order in which the tile reads them, a panel of A stays in the first-level cache while the block
//! of B streams from the second. Written here and not taken from a crate for two reasons: the epilogues
//! (bias, GELU) run on rows that are still in the cache, and a result does not depend on the number of
//! threads, because k is always cut in the same places.

use super::buffer::Pool;
use super::cell::{Dot, Work};
use super::machine::{Machine, Operand};
use super::math::gelu;
use super::tasks::Shared;
use super::tile::{Place, View, tile};
use super::widen;
use crate::engine::Real;
use pulp::Simd;

/// Rows of a tile: with 2 AVX-512 vectors of columns, 24 of 32 registers are sums.
const ROWS: usize = 12;
/// Columns of a tile.
const COLUMNS: usize = 32;
/// Longest block of k in cells: a panel of A takes 24 of the 32 KiB of a first-level cache.
const DEPTH: usize = 512;
/// Most rows of A packed at once, a multiple of ROWS.
const A_ROWS: usize = 90 * ROWS;
/// Most columns of B packed at once: with DEPTH, 786 KB of a second-level cache.
const B_COLUMNS: usize = 384;

/// What happens to a finished row segment while it is in the cache.
pub trait Epilogue: Sync {
    /// `segment` is row `row` of C from column `column`, before it is rounded.
    fn finish(&self, row: usize, column: usize, segment: &mut [f32]);
}

/// C stays as it is.
pub struct Plain;

impl Epilogue for Plain {
    #[inline(always)]
    fn finish(&self, _: usize, _: usize, _: &mut [f32]) {}
}

/// C += bias.
pub struct AddBias<'a>(pub &'a [f32]);

impl Epilogue for AddBias<'_> {
    #[inline(always)]
    fn finish(&self, _: usize, column: usize, segment: &mut [f32]) {
        for (x, &b) in segment.iter_mut().zip(&self.0[column..]) {
            *x += b;
        }
    }
}

/// C += bias; act [m, n] = GELU(C as stored).
pub struct BiasGelu<'a, R> {
    pub bias: &'a [f32],
    pub act: Shared<'a, R>,
}

impl<R: Real> Epilogue for BiasGelu<'_, R> {
    #[inline(always)]
    fn finish(&self, row: usize, column: usize, segment: &mut [f32]) {
        let at = row * self.bias.len() + column;
        // SAFETY: the same part of `act` as `segment` is of C, which one task owns.
        let act = unsafe { self.act.part(at, segment.len()) };
        for ((x, act), &b) in segment.iter_mut().zip(act).zip(&self.bias[column..]) {
            *x = R::from_f32(*x + b).to_f32();
            *act = R::from_f32(gelu(*x));
        }
    }
}

/// One product C [m, n] (+)= A [m, k] B [k, n] of operands in R. C is in R or f32; sums are f32 and
/// are rounded once, when they are complete.
#[derive(Clone, Copy)]
pub struct Product<'a, R, C, E> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: View<'a, R>,
    pub b: View<'a, R>,
    /// Row-major, rows of n.
    pub c: Shared<'a, C>,
    /// C += and not C =.
    pub add: bool,
    pub epilogue: &'a E,
}

impl<R: Operand, C: Real, E: Epilogue> Product<'_, R, C, E> {
    /// Runs it on rayon's threads.
    pub fn run(&self, machine: Machine, pool: &Pool) {
        if self.m == 0 || self.n == 0 || (self.k == 0 && self.add) {
            return;
        }
        self.a.check(self.m, self.k);
        self.b.check(self.k, self.n);
        let threads = rayon::current_num_threads();
        self.split(machine, pool, threads, Block { row: 0, rows: self.m, column: 0, columns: self.n });
    }

    /// Halves the longer side until there is one block for each thread.
    fn split(&self, machine: Machine, pool: &Pool, threads: usize, block: Block) {
        // A hand-over between threads costs about 10 us, as much as a million operations.
        let worth = 2 * block.rows * block.columns * self.k > 1 << 21;
        if threads <= 1 || !worth {
            return R::run(machine, Task { product: self, block, pool });
        }
        let part =
            |size: usize, unit: usize| (size * (threads / 2) / threads).next_multiple_of(unit).min(size);
        let (mut head, mut tail) = (block, block);
        if block.rows >= block.columns {
            head.rows = part(block.rows, ROWS);
            (tail.row, tail.rows) = (block.row + head.rows, block.rows - head.rows);
        } else {
            head.columns = part(block.columns, COLUMNS);
            (tail.column, tail.columns) = (block.column + head.columns, block.columns - head.columns);
        }
        rayon::join(
            || self.split(machine, pool, threads / 2, head),
            || self.split(machine, pool, threads - threads / 2, tail),
        );
    }
}

/// A block of C.
#[derive(Clone, Copy)]
struct Block {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

/// Cells of `count` rows or columns in panels of `unit`.
fn panel_size(count: usize, unit: usize, depth: usize) -> usize {
    count.next_multiple_of(unit) * depth
}

/// Length of the blocks of k: equal parts of at most DEPTH cells.
fn depth(k: usize, per: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH * per).max(1)).next_multiple_of(8).min(k)
}

/// One block of C on one thread.
struct Task<'a, R, C, E> {
    product: &'a Product<'a, R, C, E>,
    block: Block,
    pool: &'a Pool,
}

impl<R: Operand, C: Real, E: Epilogue> Work<R> for Task<'_, R, C, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, D: Dot<S, R>>(self, simd: S, dot: D) {
        let Self { product, block, pool } = self;
        let step = depth(product.k, D::PER).max(1);
        let cells = step.div_ceil(D::PER);
        let mut a = pool.take(panel_size(block.rows.min(A_ROWS), ROWS, cells));
        let mut b = pool.take(panel_size(block.columns.min(B_COLUMNS), COLUMNS, cells));
        let (a, b): (&mut [D::Cell], &mut [D::Cell]) =
            (bytemuck::cast_slice_mut(&mut a), bytemuck::cast_slice_mut(&mut b));
        let whole = step < product.k;
        let mut sums = pool.take(Sums::size::<C>(block, whole));
        let sums = Sums::new(product, block, whole, &mut sums);
        let mut from = 0;
        // At least once: with k = 0 the result is zeros.
        while from == 0 || from < product.k {
            let k = step.min(product.k - from);
            let pass = Pass { first: from == 0, k: k.div_ceil(D::PER), last: from + k == product.k };
            for row in (block.row..block.row + block.rows).step_by(A_ROWS) {
                let rows = A_ROWS.min(block.row + block.rows - row);
                let steps = (product.a.rows, product.a.columns);
                pack::<S, R, D, ROWS>(product.a.data, steps, (row, rows), (from, k), a);
                for column in (block.column..block.column + block.columns).step_by(B_COLUMNS) {
                    let columns = B_COLUMNS.min(block.column + block.columns - column);
                    let steps = (product.b.columns, product.b.rows);
                    pack::<S, R, D, COLUMNS>(product.b.data, steps, (column, columns), (from, k), b);
                    let block = Block { row, rows, column, columns };
                    multiply((simd, dot), product, pass, block, (a, b), sums);
                }
            }
            from += step;
        }
    }
}

/// One block of k.
#[derive(Clone, Copy)]
struct Pass {
    first: bool,
    /// Its cells.
    k: usize,
    last: bool,
}

/// Where sums are kept in f32 until they are complete: in C itself if it is f32, else in scratch. Scratch
/// holds the task's whole block of C if k has several blocks, and a row of tiles if it has one.
#[derive(Clone, Copy)]
struct Sums<'a> {
    to: Shared<'a>,
    /// Step between rows.
    step: usize,
    /// Element 0 is this element of C.
    row: usize,
    column: usize,
    /// Holds only ROWS rows of a block of columns, used by every row of tiles in turn.
    strip: bool,
}

impl<'a> Sums<'a> {
    /// Size of the scratch that it takes.
    fn size<C: Real>(block: Block, whole: bool) -> usize {
        match (C::NARROW, whole) {
            (false, _) => 0,
            (true, true) => block.rows * block.columns,
            (true, false) => ROWS * block.columns.min(B_COLUMNS),
        }
    }

    fn new<R, C: Real, E>(
        product: &Product<'a, R, C, E>,
        block: Block,
        whole: bool,
        scratch: &'a mut [f32],
    ) -> Self {
        match product.c.as_f32() {
            Some(to) => Self { to, step: product.n, row: 0, column: 0, strip: false },
            None => Self {
                to: Shared::new(scratch),
                step: if whole { block.columns } else { block.columns.min(B_COLUMNS) },
                row: block.row,
                column: block.column,
                strip: !whole,
            },
        }
    }

    /// Place of C's element (row, column); `strip` is the first element of the current strip.
    #[inline(always)]
    fn at(&self, strip: (usize, usize), row: usize, column: usize) -> usize {
        let first = if self.strip { strip } else { (self.row, self.column) };
        (row - first.0) * self.step + column - first.1
    }
}

/// Panels [k / PER][UNIT] of `count` lines from `first`, values `from..from + k` of each; the last panel and
/// the last cell are padded with zeros. `steps` are the steps between lines and along a line.
#[inline(always)]
fn pack<S: Simd, R: Real, D: Dot<S, R>, const UNIT: usize>(
    data: &[R],
    steps: (usize, usize),
    (first, count): (usize, usize),
    (from, k): (usize, usize),
    out: &mut [D::Cell],
) {
    if k == 0 {
        return;
    }
    let cells = k.div_ceil(D::PER);
    for (panel, out) in out.chunks_exact_mut(UNIT * cells).take(count.div_ceil(UNIT)).enumerate() {
        let line = first + panel * UNIT;
        let lines = UNIT.min(count - panel * UNIT);
        let out = out.as_chunks_mut::<UNIT>().0;
        if lines < UNIT {
            out.as_flattened_mut().fill(bytemuck::Zeroable::zeroed());
        }
        if steps.0 == 1 {
            for (p, out) in out.iter_mut().enumerate() {
                let p = p * D::PER;
                let row = |p: usize| &data[(from + p) * steps.1 + line..][..lines];
                if p + D::PER > k {
                    join::<S, R, D>(row(p), &[R::default(); UNIT], out);
                } else if lines == UNIT {
                    join::<S, R, D>(&row(p)[..UNIT], &row(p + D::PER - 1)[..UNIT], out);
                } else {
                    join::<S, R, D>(row(p), row(p + D::PER - 1), out);
                }
            }
        } else {
            // Here steps.1 is 1: every operand has contiguous rows or columns.
            let row = |i: usize| &data[(line + i) * steps.0 + from..][..k];
            for i in (0..lines).step_by(4) {
                if lines - i >= 4 {
                    transpose4::<S, R, D, UNIT>([row(i), row(i + 1), row(i + 2), row(i + 3)], i, out);
                } else {
                    for i in i..lines {
                        let row = row(i);
                        for (p, out) in out.iter_mut().enumerate() {
                            out[i] = cell::<S, R, D>(row, p);
                        }
                    }
                }
            }
        }
    }
}

/// out[i] = the cell of first[i] and second[i].
#[inline(always)]
fn join<S: Simd, R: Real, D: Dot<S, R>>(first: &[R], second: &[R], out: &mut [D::Cell]) {
    for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
        *out = D::cell(first, second);
    }
}

/// Cell p of a row whose last cell may be padded.
#[inline(always)]
fn cell<S: Simd, R: Real, D: Dot<S, R>>(row: &[R], p: usize) -> D::Cell {
    let p = p * D::PER;
    D::cell(row[p], row.get(p + D::PER - 1).copied().unwrap_or_default())
}

/// out[p][at..at + 4] = the four rows' cells p.
#[inline(always)]
fn transpose4<S: Simd, R: Real, D: Dot<S, R>, const UNIT: usize>(
    rows: [&[R]; 4],
    at: usize,
    out: &mut [[D::Cell; UNIT]],
) {
    let whole = rows[0].len() / D::PER / 4 * 4;
    for (block, out) in out[..whole].chunks_exact_mut(4).enumerate() {
        let values = 4 * D::PER * block..4 * D::PER * (block + 1);
        // One by one: `array::map` was not inlined here, and then there is no vector code.
        let four = |i: usize| D::cells::<4>(&rows[i][values.clone()]);
        let (a, b, c, d) = (four(0), four(1), four(2), four(3));
        for (p, out) in out.iter_mut().enumerate() {
            out[at..at + 4].copy_from_slice(&[a[p], b[p], c[p], d[p]]);
        }
    }
    for (p, out) in out.iter_mut().enumerate().skip(whole) {
        out[at..at + 4].copy_from_slice(&rows.map(|row| cell::<S, R, D>(row, p)));
    }
}

/// Every tile of a block whose operands are packed.
#[inline(always)]
fn multiply<S: Simd, R: Operand, D: Dot<S, R>, C: Real, E: Epilogue>(
    with: (S, D),
    product: &Product<'_, R, C, E>,
    pass: Pass,
    block: Block,
    (a, b): (&[D::Cell], &[D::Cell]),
    sums: Sums<'_>,
) {
    let k = pass.k;
    // Sums in scratch start from zero; sums in C start from its values if the product is added to it.
    let add = !pass.first || (product.add && !C::NARROW);
    for i in (0..block.rows).step_by(ROWS) {
        let a = &a[i * k..(i + ROWS) * k];
        let rows = ROWS.min(block.rows - i);
        let first = block.row + i;
        let strip = (first, block.column);
        for j in (0..block.columns).step_by(COLUMNS) {
            let b = &b[j * k..(j + COLUMNS) * k];
            let columns = COLUMNS.min(block.columns - j);
            let at = sums.at(strip, first, block.column + j);
            if rows == ROWS && columns == COLUMNS {
                // SAFETY: the whole tile lies inside this task's block of C.
                unsafe { packed_tile::<S, R, D>(with, k, a, b, sums.to.pointer(at), sums.step, add) };
            } else {
                let mut edge = [0.0f32; ROWS * COLUMNS];
                // SAFETY: `edge` holds a whole tile.
                unsafe { packed_tile::<S, R, D>(with, k, a, b, edge.as_mut_ptr(), COLUMNS, false) };
                for (i, edge) in edge.chunks_exact(COLUMNS).take(rows).enumerate() {
                    // SAFETY: inside this task's block of C.
                    let c = unsafe { sums.to.part(at + i * sums.step, columns) };
                    for (c, &x) in c.iter_mut().zip(edge) {
                        *c = if add { *c + x } else { x };
                    }
                }
            }
        }
        if pass.last {
            for row in first..first + rows {
                // SAFETY: inside this task's block of C.
                let segment = unsafe { sums.to.part(sums.at(strip, row, block.column), block.columns) };
                finish(product, row, block.column, segment);
            }
        }
    }
}

/// Runs the epilogue on a row segment and, if its sums are in scratch, stores it in C.
#[inline(always)]
fn finish<R, C: Real, E: Epilogue>(
    product: &Product<'_, R, C, E>,
    row: usize,
    column: usize,
    segment: &mut [f32],
) {
    if !C::NARROW {
        return product.epilogue.finish(row, column, segment);
    }
    // SAFETY: the part of this task's block of C that `segment` is the sum of.
    let c = unsafe { product.c.part(row * product.n + column, segment.len()) };
    if product.add {
        for (x, c) in segment.iter_mut().zip(&*c) {
            *x += c.to_f32();
        }
    }
    product.epilogue.finish(row, column, segment);
    widen::round(segment, c);
}

/// One ROWS x COLUMNS tile, in as many pieces as the instruction set's registers require.
///
/// # Safety
/// `c` must be the start of ROWS writable rows of COLUMNS elements, `step` apart.
#[inline(always)]
unsafe fn packed_tile<S: Simd, R, D: Dot<S, R>>(
    with: (S, D),
    k: usize,
    a: &[D::Cell],
    b: &[D::Cell],
    c: *mut f32,
    step: usize,
    add: bool,
) {
    assert!(a.len() >= ROWS * k && b.len() >= COLUMNS * k);
    macro_rules! pieces {
        ($r:literal, $v:literal) => {
            for j in (0..COLUMNS).step_by($v * S::F32_LANES) {
                for i in (0..ROWS).step_by($r) {
                    // SAFETY: a part of the tile; the packed panels were measured above.
                    unsafe {
                        let (a, b) = (a.as_ptr().add(i), b.as_ptr().add(j));
                        let (c, c_step) = (c.add(i * step + j), step);
                        let at = Place { a, a_steps: (1, ROWS), b, b_step: COLUMNS, c, c_step };
                        tile::<S, R, D, $r, $v>(with, k, at, add);
                    }
                }
            }
        };
    }
    if S::REGISTER_COUNT >= 32 {
        pieces!(12, 2);
    } else {
        pieces!(6, 2);
    }
}
