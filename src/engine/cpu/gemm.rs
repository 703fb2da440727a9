//! Large matrix products. The classic scheme (Goto & van de Geijn 2008): blocks of both operands
//! are packed into the order in which the tile reads them, a panel of A stays in the first-level
//! cache while the block of B streams from the second. Written here and not taken from a crate for
//! two reasons: the epilogues (bias, GELU) run on rows that are still in the cache, and a result
//! does not depend on the number of threads, because k is cut in the same places always.

use super::buffer::Pool;
use super::math::gelu;
use super::tasks::Shared;
use super::tile::{View, tile};
use pulp::{Arch, Simd, WithSimd};

/// Rows of a tile: with 2 AVX-512 vectors of columns, 24 of 32 registers are sums.
const ROWS: usize = 12;
/// Columns of a tile.
const COLUMNS: usize = 32;
/// Longest block of k: a panel of A takes 24 of the 32 KiB of a first-level cache.
const DEPTH: usize = 512;
/// Most rows of A packed at once, a multiple of ROWS.
const A_ROWS: usize = 90 * ROWS;
/// Most columns of B packed at once: with DEPTH, 786 KB of a second-level cache.
const B_COLUMNS: usize = 384;

/// What happens to a finished row segment while it is in the cache.
pub trait Epilogue: Sync {
    /// `segment` is row `row` of C from column `column`.
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

/// C += bias; act [m, n] = GELU(C).
pub struct BiasGelu<'a> {
    pub bias: &'a [f32],
    pub act: Shared<'a>,
}

impl Epilogue for BiasGelu<'_> {
    #[inline(always)]
    fn finish(&self, row: usize, column: usize, segment: &mut [f32]) {
        let at = row * self.bias.len() + column;
        // SAFETY: the same part of `act` as `segment` is of C, which one task owns.
        let act = unsafe { self.act.part(at, segment.len()) };
        for ((x, act), &b) in segment.iter_mut().zip(act).zip(&self.bias[column..]) {
            *x += b;
            *act = gelu(*x);
        }
    }
}

/// One product C [m, n] (+)= A [m, k] B [k, n].
#[derive(Clone, Copy)]
pub struct Product<'a, E> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: View<'a>,
    pub b: View<'a>,
    /// Row-major, rows of n.
    pub c: Shared<'a>,
    /// C += and not C =.
    pub add: bool,
    pub epilogue: &'a E,
}

impl<E: Epilogue> Product<'_, E> {
    /// Runs it on rayon's threads.
    pub fn run(&self, arch: Arch, pool: &Pool) {
        if self.m == 0 || self.n == 0 || (self.k == 0 && self.add) {
            return;
        }
        self.a.check(self.m, self.k);
        self.b.check(self.k, self.n);
        let threads = rayon::current_num_threads();
        self.split(arch, pool, threads, Block { row: 0, rows: self.m, column: 0, columns: self.n });
    }

    /// Halves the longer side until there is a block a thread.
    fn split(&self, arch: Arch, pool: &Pool, threads: usize, block: Block) {
        // A hand-over between threads costs about 10 us, as much as a million operations.
        let worth = 2 * block.rows * block.columns * self.k > 1 << 21;
        if threads <= 1 || !worth {
            let mut a = pool.take(panel_size(block.rows.min(A_ROWS), ROWS, self.k));
            let mut b = pool.take(panel_size(block.columns.min(B_COLUMNS), COLUMNS, self.k));
            return arch.dispatch(Task { product: self, block, a: &mut a, b: &mut b });
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
            || self.split(arch, pool, threads / 2, head),
            || self.split(arch, pool, threads - threads / 2, tail),
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

/// Packed values of `count` rows or columns in panels of `unit`.
fn panel_size(count: usize, unit: usize, k: usize) -> usize {
    count.next_multiple_of(unit) * depth(k)
}

/// Length of the blocks of k: equal parts of at most DEPTH.
fn depth(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH).max(1)).next_multiple_of(8).min(k)
}

/// One block of C on one thread.
struct Task<'a, E> {
    product: &'a Product<'a, E>,
    block: Block,
    a: &'a mut [f32],
    b: &'a mut [f32],
}

impl<E: Epilogue> WithSimd for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { product, block, a, b } = self;
        let step = depth(product.k).max(1);
        let mut from = 0;
        // At least once: with k = 0 the result is zeros.
        while from == 0 || from < product.k {
            let k = step.min(product.k - from);
            let pass = Pass { from, k, add: product.add || from > 0, last: from + k == product.k };
            for row in (block.row..block.row + block.rows).step_by(A_ROWS) {
                let rows = A_ROWS.min(block.row + block.rows - row);
                pack::<ROWS>(product.a.data, (product.a.rows, product.a.columns), (row, rows), (from, k), a);
                for column in (block.column..block.column + block.columns).step_by(B_COLUMNS) {
                    let columns = B_COLUMNS.min(block.column + block.columns - column);
                    let steps = (product.b.columns, product.b.rows);
                    pack::<COLUMNS>(product.b.data, steps, (column, columns), (from, k), b);
                    multiply(simd, product, pass, Block { row, rows, column, columns }, a, b);
                }
            }
            from += step;
        }
    }
}

/// One block of k.
#[derive(Clone, Copy)]
struct Pass {
    from: usize,
    k: usize,
    add: bool,
    last: bool,
}

/// Panels [k][UNIT] of `count` lines from `first`, values `from..from + k` of each; the last panel
/// is filled up with zeros. `steps` are those between lines and along them.
#[inline(always)]
fn pack<const UNIT: usize>(
    data: &[f32],
    steps: (usize, usize),
    (first, count): (usize, usize),
    (from, k): (usize, usize),
    out: &mut [f32],
) {
    if k == 0 {
        return;
    }
    for (panel, out) in out.chunks_exact_mut(UNIT * k).take(count.div_ceil(UNIT)).enumerate() {
        let line = first + panel * UNIT;
        let lines = UNIT.min(count - panel * UNIT);
        let out = out.as_chunks_mut::<UNIT>().0;
        if lines < UNIT {
            out.as_flattened_mut().fill(0.0);
        }
        if steps.0 == 1 {
            for (p, out) in out.iter_mut().enumerate() {
                let at = (from + p) * steps.1 + line;
                if lines == UNIT {
                    out.copy_from_slice(&data[at..at + UNIT]);
                } else {
                    out[..lines].copy_from_slice(&data[at..at + lines]);
                }
            }
        } else {
            // Here steps.1 is 1: every operand has contiguous rows or columns.
            let row = |i: usize| &data[(line + i) * steps.0 + from..][..k];
            for i in (0..lines).step_by(4) {
                if lines - i >= 4 {
                    transpose4([row(i), row(i + 1), row(i + 2), row(i + 3)], i, out);
                } else {
                    for i in i..lines {
                        out.iter_mut().zip(row(i)).for_each(|(out, &x)| out[i] = x);
                    }
                }
            }
        }
    }
}

/// out[p][at..at + 4] = the four rows' values p.
#[inline(always)]
fn transpose4<const UNIT: usize>(rows: [&[f32]; 4], at: usize, out: &mut [[f32; UNIT]]) {
    let [a, b, c, d] = rows.map(|row| row.as_chunks::<4>().0);
    for ((((out, a), b), c), d) in out.chunks_exact_mut(4).zip(a).zip(b).zip(c).zip(d) {
        for (p, out) in out.iter_mut().enumerate() {
            out[at..at + 4].copy_from_slice(&[a[p], b[p], c[p], d[p]]);
        }
    }
    for p in out.len() / 4 * 4..out.len() {
        out[p][at..at + 4].copy_from_slice(&rows.map(|row| row[p]));
    }
}

/// Every tile of a block whose operands are packed.
#[inline(always)]
fn multiply<S: Simd, E: Epilogue>(
    simd: S,
    product: &Product<'_, E>,
    pass: Pass,
    block: Block,
    a: &[f32],
    b: &[f32],
) {
    let n = product.n;
    let k = pass.k;
    debug_assert!(pass.from + k <= product.k);
    for i in (0..block.rows).step_by(ROWS) {
        let a = &a[i * k..(i + ROWS) * k];
        let rows = ROWS.min(block.rows - i);
        for j in (0..block.columns).step_by(COLUMNS) {
            let b = &b[j * k..(j + COLUMNS) * k];
            let columns = COLUMNS.min(block.columns - j);
            let at = (block.row + i) * n + block.column + j;
            if rows == ROWS && columns == COLUMNS {
                // SAFETY: the whole tile lies inside this task's block of C.
                unsafe { packed_tile(simd, k, a, b, product.c.pointer(at), n, pass.add) };
            } else {
                let mut edge = [0.0f32; ROWS * COLUMNS];
                // SAFETY: `edge` holds a whole tile.
                unsafe { packed_tile(simd, k, a, b, edge.as_mut_ptr(), COLUMNS, false) };
                for (i, edge) in edge.chunks_exact(COLUMNS).take(rows).enumerate() {
                    // SAFETY: inside this task's block of C.
                    let c = unsafe { product.c.part(at + i * n, columns) };
                    for (c, &x) in c.iter_mut().zip(edge) {
                        *c = if pass.add { *c + x } else { x };
                    }
                }
            }
        }
        if pass.last {
            for row in block.row + i..block.row + i + rows {
                // SAFETY: inside this task's block of C.
                let segment = unsafe { product.c.part(row * n + block.column, block.columns) };
                product.epilogue.finish(row, block.column, segment);
            }
        }
    }
}

/// One ROWS x COLUMNS tile, in as many pieces as the instruction set's registers ask for.
///
/// # Safety
/// `c` must be the start of ROWS writable rows of COLUMNS elements, `step` apart.
#[inline(always)]
unsafe fn packed_tile<S: Simd>(simd: S, k: usize, a: &[f32], b: &[f32], c: *mut f32, step: usize, add: bool) {
    assert!(a.len() >= ROWS * k && b.len() >= COLUMNS * k);
    macro_rules! pieces {
        ($r:literal, $v:literal) => {
            for j in (0..COLUMNS).step_by($v * S::F32_LANES) {
                for i in (0..ROWS).step_by($r) {
                    // SAFETY: a part of the tile; the packed panels were measured above.
                    unsafe {
                        let (a, b) = (a.as_ptr().add(i), b.as_ptr().add(j));
                        tile::<S, $r, $v>(simd, k, a, (1, ROWS), b, COLUMNS, c.add(i * step + j), step, add);
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
