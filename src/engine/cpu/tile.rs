//! The innermost loop of every matrix product: a tile of C is kept in registers while a row of B
//! (vectors) is multiplied by a column of A (broadcast). Each element of C is one chain of fused
//! multiply-adds in ascending k, whatever the tile's size, so a result does not depend on the
//! instruction set, the thread count, or where in a matrix it stands. Operands are cells (`machine`):
//! f32 values, or pairs of bf16 with half the k.

use super::machine::Dot;
use pulp::Simd;

/// A matrix in memory: element (i, j) is `data[i * rows + j * columns]`; one of the steps is 1.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    pub data: &'a [T],
    /// Step between rows.
    pub rows: usize,
    /// Step between columns.
    pub columns: usize,
}

impl<'a, T> View<'a, T> {
    /// Row-major with rows of `width`.
    pub fn rows(data: &'a [T], width: usize) -> Self {
        Self { data, rows: width, columns: 1 }
    }

    /// The transpose of a row-major matrix with rows of `width`.
    pub fn transposed(data: &'a [T], width: usize) -> Self {
        Self { data, rows: 1, columns: width }
    }

    /// Panics unless an [m, n] matrix fits.
    #[inline(always)]
    pub fn check(&self, m: usize, n: usize) {
        assert!(m == 0 || n == 0 || (m - 1) * self.rows + (n - 1) * self.columns < self.data.len());
    }
}

/// C [R, V vectors] (+)= A [R, k] B [k, V vectors]; strides in elements.
///
/// # Safety
/// a + i * steps.0 + p * steps.1, b + p * b_step + 0..V vectors and c + i * c_step + 0..V vectors
/// must be readable (c writable) for i < R, p < k.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn tile<S: Simd, T, D: Dot<S, T>, const R: usize, const V: usize>(
    (simd, dot): (S, D),
    k: usize,
    a: *const D::Cell,
    steps: (usize, usize),
    b: *const D::Cell,
    b_step: usize,
    c: *mut f32,
    c_step: usize,
    add: bool,
) {
    let mut acc = [[simd.splat_f32s(0.0); V]; R];
    for p in 0..k {
        // SAFETY: the caller's promise, here and below.
        let b = unsafe { b.add(p * b_step) };
        let row: [D::Vector; V] = std::array::from_fn(|v| {
            // SAFETY: as above.
            unsafe { b.add(v * S::F32_LANES).cast::<D::Vector>().read_unaligned() }
        });
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as above.
            let x = dot.splat(simd, unsafe { *a.add(i * steps.0 + p * steps.1) });
            for (sum, &y) in acc.iter_mut().zip(&row) {
                *sum = dot.mul_add(simd, x, y, *sum);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        for (v, &sum) in acc.iter().enumerate() {
            // SAFETY: as above.
            let to = unsafe { c.add(i * c_step + v * S::F32_LANES).cast::<S::f32s>() };
            // SAFETY: as above.
            unsafe {
                let sum = if add { simd.add_f32s(to.read_unaligned(), sum) } else { sum };
                to.write_unaligned(sum);
            }
        }
    }
}

/// C [m, n] (+)= A [m, k] B [k, n] without packing, for operands of cells that fit the caches: B and C have
/// contiguous rows (steps `b_step`, `c_step`), n is a multiple of 16.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn product<S: Simd, T, D: Dot<S, T>>(
    with: (S, D),
    (m, n, k): (usize, usize, usize),
    a: View<'_, D::Cell>,
    b: &[D::Cell],
    b_step: usize,
    c: &mut [f32],
    c_step: usize,
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    assert!(n % 16 == 0 && (k == 0 || (k - 1) * b_step + n <= b.len()) && (m - 1) * c_step + n <= c.len());
    let (b, c) = (b.as_ptr(), c.as_mut_ptr());
    let wide = 2 * S::F32_LANES;
    let mut j = 0;
    while j + wide <= n {
        // SAFETY: columns j.. of checked matrices.
        unsafe { column::<S, T, D, 2>(with, m, k, a, b.add(j), b_step, c.add(j), c_step, add) };
        j += wide;
    }
    while j < n {
        // SAFETY: as above.
        unsafe { column::<S, T, D, 1>(with, m, k, a, b.add(j), b_step, c.add(j), c_step, add) };
        j += S::F32_LANES;
    }
}

/// All rows of one column block of `product`.
///
/// # Safety
/// As `tile`, for i < m.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn column<S: Simd, T, D: Dot<S, T>, const V: usize>(
    with: (S, D),
    m: usize,
    k: usize,
    a: View<'_, D::Cell>,
    b: *const D::Cell,
    b_step: usize,
    c: *mut f32,
    c_step: usize,
    add: bool,
) {
    let steps = (a.rows, a.columns);
    let mut i = 0;
    macro_rules! rows {
        ($r:literal) => {
            while m - i >= $r {
                // SAFETY: rows i..i + r of the caller's matrices.
                unsafe {
                    let (a, c) = (a.data.as_ptr().add(i * a.rows), c.add(i * c_step));
                    tile::<S, T, D, $r, V>(with, k, a, steps, b, b_step, c, c_step, add);
                }
                i += $r;
            }
        };
    }
    if S::REGISTER_COUNT >= 32 {
        rows!(8);
    }
    rows!(4);
    rows!(2);
    rows!(1);
}
