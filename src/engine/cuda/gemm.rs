//! Matrix products through cuBLASLt: the three that a linear layer needs, in f32 (without TF32, so
//! that results compare with the CPU's) or bf16 with sums in f32; gradients of weights are f32.
//!
//! cuBLASLt stores by columns, the engine by rows: a row-major [m, n] is a column-major [n, m], so every
//! product is computed transposed, with the factors swapped. A shape's algorithm is the heuristic's first
//! choice, asked for once and kept: the same call gives the same bits in a run, and a recorded step keeps
//! what it was recorded with. Split sums through atomics are excluded.
//!
//! Two of cuBLASLt's epilogues are not used; kernels do their work. Its GELU is the tanh approximation, and
//! BERT's is the exact erf. Its bias gradient overwrites, and gradients here add up over packs.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self as blas, CublasError};
use cudarc::cublaslt::sys::{self, cudaDataType};

use super::device::Device;
use crate::{Error, Result};

/// Bytes of scratch that algorithms may use: what NVIDIA recommends for Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// Operands start at multiples of this many bytes (`Layout` aligns tensors to 8 elements); by default the
/// heuristic would assume 256.
const ALIGNMENT: u32 = 16;

/// Which of a linear layer's products; weight [n, k], x [rows, k], y [rows, n].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// y = x Wᵀ, with the bias added to each row or not.
    Forward { bias: bool },
    /// dx = dy W, added to dx or not.
    BackwardInput { add: bool },
    /// dW += dyᵀ x
    BackwardWeight,
}

/// One product: everything that its algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    pub form: Form,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// Operands are bf16, else f32.
    pub narrow: bool,
}

/// Device addresses of a product; `bias` is 0 without one.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// x or dy: the activations that are read as rows.
    pub rows: u64,
    /// W, or x for `BackwardWeight`.
    pub other: u64,
    pub out: u64,
    pub bias: u64,
}

/// A handle, its scratch and the plans made so far.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Product, Plan>,
    device: Arc<Device>,
}

impl Gemm {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let handle = check("a handle", blas::create_handle())?;
        let workspace = device.allocate(WORKSPACE)?;
        Ok(Self { handle, workspace, plans: HashMap::new(), device: device.clone() })
    }

    /// Queues the product on the compute stream.
    pub fn run(&mut self, product: Product, at: Operands) -> Result<()> {
        if product.rows == 0 {
            return Ok(());
        }
        if !self.plans.contains_key(&product) {
            let plan = Plan::new(self.handle, product)?;
            self.plans.insert(product, plan);
        }
        let Some(plan) = self.plans.get(&product) else {
            return Err(Error::device(format!("cuBLASLt: no plan for {product:?}")));
        };
        if at.bias != 0 {
            use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            plan.describe(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias)?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        let beta = if product.adds() { &one } else { &zero };
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the plan's descriptors live in `self`; addresses and sizes were checked by the
        // caller; the workspace is used by this stream alone.
        let answer = unsafe {
            blas::matmul(
                self.handle,
                plan.desc,
                (&raw const one).cast(),
                std::ptr::from_ref(beta).cast(),
                pointer(at.other),
                plan.a,
                pointer(at.rows),
                plan.b,
                pointer(at.out),
                plan.c,
                at.out as *mut c_void,
                plan.c,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.device.compute.raw().cast(),
            )
        };
        check(&format!("{product:?}"), answer)
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made once in `new`. A failure cannot be reported.
        let _ = unsafe { blas::destroy_handle(self.handle) };
        self.device.free(self.workspace, WORKSPACE);
    }
}

impl Product {
    /// The result's rows and columns, and what is summed over.
    pub fn shape(&self) -> [usize; 3] {
        let Self { form, rows, n, k, .. } = *self;
        match form {
            Form::Forward { .. } => [rows, n, k],
            Form::BackwardInput { .. } => [rows, k, n],
            Form::BackwardWeight => [n, k, rows],
        }
    }

    fn adds(&self) -> bool {
        matches!(self.form, Form::BackwardInput { add: true } | Form::BackwardWeight)
    }
}

/// A column-major matrix as it lies in memory: rows, columns; rows are contiguous.
type Stored = (usize, usize);

/// A prepared product: descriptors and algorithm.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// As `cublasOperation_t` numbers them.
const KEEP: i32 = 0;
const TRANSPOSE: i32 = 1;

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: Product) -> Result<Self> {
        let Product { form, rows, n, k, narrow } = product;
        let real = if narrow { cudaDataType::CUDA_R_16BF } else { cudaDataType::CUDA_R_32F };
        // (first factor, transposed?), (second factor, transposed?), result and its type
        let (a, b, c): ((Stored, i32), (Stored, i32), (Stored, cudaDataType)) = match form {
            Form::Forward { .. } => (((k, n), TRANSPOSE), ((k, rows), KEEP), ((n, rows), real)),
            Form::BackwardInput { .. } => (((k, n), KEEP), ((n, rows), KEEP), ((k, rows), real)),
            Form::BackwardWeight => {
                (((k, rows), KEEP), ((n, rows), TRANSPOSE), ((k, n), cudaDataType::CUDA_R_32F))
            }
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = check("a product", blas::create_matmul_desc(compute, cudaDataType::CUDA_R_32F))?;
        let mut plan = Self {
            desc,
            a: layout(a.0, real)?,
            b: layout(b.0, real)?,
            c: layout(c.0, c.1)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        use sys::cublasLtMatmulDescAttributes_t as D;
        plan.describe(D::CUBLASLT_MATMUL_DESC_TRANSA, &a.1)?;
        plan.describe(D::CUBLASLT_MATMUL_DESC_TRANSB, &b.1)?;
        let epilogue = match form {
            Form::Forward { bias: true } => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            _ => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
        };
        plan.describe(D::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        plan.algorithm = plan.first_algorithm(handle, product)?;
        Ok(plan)
    }

    fn describe<T>(&self, what: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the value outlives the call, which copies it.
        let answer = unsafe {
            blas::set_matmul_desc_attribute(self.desc, what, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        check("a product's attribute", answer)
    }

    fn first_algorithm(
        &self,
        handle: sys::cublasLtHandle_t,
        product: Product,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let wanted = Preference::new()?;
        // SAFETY: all descriptors live.
        let found = unsafe {
            blas::get_matmul_algo_heuristic(handle, self.desc, self.a, self.b, self.c, self.c, wanted.0)
        };
        Ok(check(&format!("an algorithm for {product:?}"), found)?.algo)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made once in `new`. A failure cannot be reported.
        unsafe {
            let _ = blas::destroy_matmul_desc(self.desc);
            for layout in [self.a, self.b, self.c] {
                let _ = blas::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The limits that an algorithm must keep.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        use sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        let wanted = Self(check("a preference", blas::create_matmul_pref())?);
        wanted.set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        // partial sums of a split product go to the workspace and are added in order
        let reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        wanted.set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)?;
        for operand in [
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            wanted.set(operand, &ALIGNMENT)?;
        }
        Ok(wanted)
    }

    fn set<T>(&self, what: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the value outlives the call, which copies it.
        let answer = unsafe {
            blas::set_matmul_pref_attribute(self.0, what, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        check("a preference", answer)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once in `new`. A failure cannot be reported.
        let _ = unsafe { blas::destroy_matmul_pref(self.0) };
    }
}

/// The layout of a matrix whose columns follow one another without gaps.
fn layout((rows, columns): Stored, kind: cudaDataType) -> Result<sys::cublasLtMatrixLayout_t> {
    check("a matrix", blas::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64))
}

/// cuBLASLt's version, as 120805 for 12.8.5.
pub fn version() -> usize {
    // SAFETY: it takes no arguments and changes nothing.
    unsafe { sys::cublasLtGetVersion() }
}

fn check<T>(what: &str, answer: std::result::Result<T, CublasError>) -> Result<T> {
    answer.map_err(|e| Error::device(format!("cuBLASLt: {what}: {:?}", e.0)))
}
