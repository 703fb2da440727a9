//! The innermost loop of every matrix product: a tile of C is kept in registers while a row of B (vectors) is
//! multiplied by a column of A (broadcast). Each element of C is one chain of fused multiply-adds in
//! ascending k, whatever the tile's size, so a result does not depend on the instruction set, the thread
//! count, or its place in a matrix. Operands are cells (`cell`): f32 values, or pairs of bf16 with half the
//! k.

use super::cell::Dot;
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

/// Where a tile's matrices start, and the steps between their elements.
#[derive(Clone, Copy)]
pub struct Place<C> {
    pub a: *const C,
    /// Steps between rows and between columns.
    pub a_steps: (usize, usize),
    /// Contiguous rows.
    pub b: *const C,
    /// Step between rows.
    pub b_step: usize,
    /// Contiguous rows.
    pub c: *mut f32,
    /// Step between rows.
    pub c_step: usize,
}

/// C [R, V vectors] (+)= A [R, k] B [k, V vectors].
///
/// # Safety
/// a + i * a_steps.0 + p * a_steps.1, b + p * b_step + 0..V vectors and c + i * c_step + 0..V vectors
/// must be readable (c writable) for i < R, p < k.
#[inline(always)]
pub unsafe fn tile<S: Simd, T, D: Dot<S, T>, const R: usize, const V: usize>(
    (simd, dot): (S, D),
    k: usize,
    at: Place<D::Cell>,
    add: bool,
) {
    let Place { a, a_steps, b, b_step, c, c_step } = at;
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
            let x = dot.splat(simd, unsafe { *a.add(i * a_steps.0 + p * a_steps.1) });
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

/// C [m, n] (+)= A [m, k] B [k, n] without packing, for operands of cells that fit the caches: B and C are
/// row-major, n is a multiple of 16.
#[inline(always)]
pub fn product<S: Simd, T, D: Dot<S, T>>(
    with: (S, D),
    (m, n, k): (usize, usize, usize),
    a: View<'_, D::Cell>,
    b: &[D::Cell],
    c: &mut [f32],
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    assert!(n % 16 == 0 && k * n <= b.len() && m * n <= c.len());
    let (b, c) = (b.as_ptr(), c.as_mut_ptr());
    let at = Place { a: a.data.as_ptr(), a_steps: (a.rows, a.columns), b, b_step: n, c, c_step: n };
    let wide = 2 * S::F32_LANES;
    let mut j = 0;
    while j + wide <= n {
        // SAFETY: columns j.. of checked matrices.
        unsafe { column::<S, T, D, 2>(with, (m, k), Place { b: b.add(j), c: c.add(j), ..at }, add) };
        j += wide;
    }
    while j < n {
        // SAFETY: as above.
        unsafe { column::<S, T, D, 1>(with, (m, k), Place { b: b.add(j), c: c.add(j), ..at }, add) };
        j += S::F32_LANES;
    }
}

/// All rows of one column block of `product`.
///
/// # Safety
/// As `tile`, for i < m.
#[inline(always)]
unsafe fn column<S: Simd, T, D: Dot<S, T>, const V: usize>(
    with: (S, D),
    (m, k): (usize, usize),
    at: Place<D::Cell>,
    add: bool,
) {
    let mut i = 0;
    macro_rules! rows {
        ($r:literal) => {
            while m - i >= $r {
                // SAFETY: rows i..i + r of the caller's matrices.
                unsafe {
                    let (a, c) = (at.a.add(i * at.a_steps.0), at.c.add(i * at.c_step));
                    tile::<S, T, D, $r, V>(with, k, Place { a, c, ..at }, add);
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
