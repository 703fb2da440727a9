//! Work over rows, cut into chunks of a fixed size and spread over rayon's threads by halving. The
//! chunks, and so every partial sum, are the same for any number of threads. With one thread there
//! is no hand-over to a pool at all: for small models that would cost more than the arithmetic.

use crate::engine::Real;
use pulp::{Arch, Simd, WithSimd};

/// Something that can be cut between two rows.
pub trait Rows: Send + Sized {
    /// Rows that are left.
    fn rows(&self) -> usize;
    /// The first `at` rows and the rest.
    fn cut(self, at: usize) -> (Self, Self);
}

/// Rows to read: data and width.
pub struct In<'a, T>(pub &'a [T], pub usize);
/// Rows to write: data and width.
pub struct Out<'a, T>(pub &'a mut [T], pub usize);

impl<T: Sync> Rows for In<'_, T> {
    fn rows(&self) -> usize {
        self.0.len() / self.1
    }

    fn cut(self, at: usize) -> (Self, Self) {
        let (head, tail) = self.0.split_at(at * self.1);
        (Self(head, self.1), Self(tail, self.1))
    }
}

impl<T: Send> Rows for Out<'_, T> {
    fn rows(&self) -> usize {
        self.0.len() / self.1
    }

    fn cut(self, at: usize) -> (Self, Self) {
        let (head, tail) = self.0.split_at_mut(at * self.1);
        (Self(head, self.1), Self(tail, self.1))
    }
}

/// Partial results: one row of `width` values for each chunk of `chunk` rows.
pub struct Partials<'a> {
    data: &'a mut [f32],
    width: usize,
    chunk: usize,
    rows: usize,
}

impl<'a> Partials<'a> {
    /// Number of values in the partial results of `rows` rows.
    pub fn size(rows: usize, chunk: usize, width: usize) -> usize {
        rows.div_ceil(chunk) * width
    }

    /// `data` has `size` values and is zeroed here.
    pub fn new(data: &'a mut [f32], rows: usize, chunk: usize, width: usize) -> Self {
        data.fill(0.0);
        Self { data, width, chunk, rows }
    }

    /// The row of the one chunk that is left.
    pub fn row(&mut self) -> &mut [f32] {
        self.data
    }
}

impl Rows for Partials<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cut(self, at: usize) -> (Self, Self) {
        let Self { data, width, chunk, rows } = self;
        let (head, tail) = data.split_at_mut(at.div_ceil(chunk) * width);
        (Self { data: head, width, chunk, rows: at }, Self { data: tail, width, chunk, rows: rows - at })
    }
}

/// Adds the partial results in `partials` ([chunks, stride]), columns from `at`, to `total`, in
/// the order of the chunks.
pub fn add_partials(partials: &[f32], stride: usize, at: usize, total: &mut [f32]) {
    for row in partials.chunks_exact(stride) {
        for (sum, part) in total.iter_mut().zip(&row[at..]) {
            *sum += part;
        }
    }
}

macro_rules! rows_of_tuples {
    ($($name:ident $index:tt),+) => {
        impl<$($name: Rows),+> Rows for ($($name,)+) {
            fn rows(&self) -> usize {
                self.0.rows()
            }

            fn cut(self, at: usize) -> (Self, Self) {
                let halves = ($(self.$index.cut(at),)+);
                (($(halves.$index.0,)+), ($(halves.$index.1,)+))
            }
        }
    };
}
rows_of_tuples!(A 0, B 1);
rows_of_tuples!(A 0, B 1, C 2);
rows_of_tuples!(A 0, B 1, C 2, D 3);
rows_of_tuples!(A 0, B 1, C 2, D 3, E 4);
rows_of_tuples!(A 0, B 1, C 2, D 3, E 4, F 5);
rows_of_tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
rows_of_tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// Calls `work(first row, rows)` for every chunk of `chunk` rows.
pub fn each<R: Rows>(rows: R, chunk: usize, work: &(impl Fn(usize, R) + Sync)) {
    if rayon::current_num_threads() == 1 {
        let (mut rest, mut first) = (rows, 0);
        while rest.rows() > chunk {
            let (head, tail) = rest.cut(chunk);
            work(first, head);
            (rest, first) = (tail, first + chunk);
        }
        if rest.rows() > 0 {
            work(first, rest);
        }
    } else if rows.rows() > 0 {
        halve(rows, 0, chunk, work);
    }
}

fn halve<R: Rows>(rows: R, first: usize, chunk: usize, work: &(impl Fn(usize, R) + Sync)) {
    let chunks = rows.rows().div_ceil(chunk);
    if chunks <= 1 {
        return work(first, rows);
    }
    let middle = chunks / 2 * chunk;
    let (head, tail) = rows.cut(middle);
    rayon::join(|| halve(head, first, chunk, work), || halve(tail, first + middle, chunk, work));
}

/// Calls `work(i)` for i in 0..n, each its own task.
pub fn each_index(n: usize, work: &(impl Fn(usize) + Sync)) {
    if rayon::current_num_threads() == 1 {
        (0..n).for_each(work);
    } else if n > 0 {
        halve_indices(0, n, work);
    }
}

fn halve_indices(from: usize, to: usize, work: &(impl Fn(usize) + Sync)) {
    if to - from == 1 {
        return work(from);
    }
    let middle = from.midpoint(to);
    rayon::join(|| halve_indices(from, middle, work), || halve_indices(middle, to, work));
}

/// A mutable slice that several tasks write, each its own part. The parts are not contiguous (column blocks
/// of a matrix, heads of a row), which safe slices cannot express.
#[derive(Clone, Copy)]
pub struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is the right to write into a slice; `part` demands that parts in use are distinct.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: std::marker::PhantomData }
    }

    /// Elements at..at + len.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[inline(always)]
    pub unsafe fn part(self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part {at}..{} of {}", at + len, self.len);
        // SAFETY: inside the slice by the check above; the caller keeps parts distinct.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// The same elements, where they are f32.
    pub fn as_f32(self) -> Option<Shared<'a>>
    where
        T: Real,
    {
        let Self { start, len, .. } = self;
        let same = std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>();
        same.then_some(Shared { start: start.cast(), len, owner: std::marker::PhantomData })
    }

    /// The address of element `at`, which must be inside.
    #[inline(always)]
    pub fn pointer(self, at: usize) -> *mut T {
        assert!(at <= self.len, "element {at} of {}", self.len);
        // SAFETY: at most one past the end, by the check above.
        unsafe { self.start.add(at) }
    }
}

/// Runs `work` compiled for the instruction set of `arch`. Unlike `Arch::dispatch` with a closure,
/// which reaches it through a `FnOnce` shim that is not inlined (and then has neither vectors nor
/// fused multiply-adds: 20 times slower), this calls the closure's own body. Pass closures marked
/// `#[inline(always)]`.
#[inline]
pub fn vectorised<R>(arch: Arch, work: impl FnMut() -> R) -> R {
    struct Run<F>(F);

    impl<R, F: FnMut() -> R> WithSimd for Run<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }

    arch.dispatch(Run(work))
}
