//! cuBLASLt's descriptions of a product, and the algorithms that it proposes.
//!
//! The library's matrices are stored by columns. Ours, stored by rows, is to it the transposed one, so it is asked for `C^T = B^T A^T`:
//! its A is our B, its m our n.

use crate::library::{self, Wanted};
use cudarc::cublaslt::sys::{
    self as lt, cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
    cublasStatus_t as Status, cudaDataType as Type,
};
use cudarc::driver::CudaContext;
use perjoule_kernels::op::MatMul;
use perjoule_kernels::{Alignment, DType, DeviceId, DeviceInfo, Matrix};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// NVIDIA's matrix products.
const CUBLASLT: Wanted = Wanted {
    what: "cuBLASLt, NVIDIA's matrix products",
    names: if cfg!(windows) {
        &["cublasLt64_13.dll", "cublasLt64_12.dll"]
    } else {
        &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"]
    },
    first: &[],
    install: "the CUDA toolkit, or `pip install nvidia-cublas`",
};
static WANTED: Wanted = CUBLASLT;

/// Algorithms that are asked for, at most.
const PROPOSALS: usize = 64;
/// Bytes of scratch that an algorithm may use.
const WORKSPACE: usize = 64 << 20;
/// Sums of parts are added in the type of accumulation, never in that of the result, as they are "in place".
const REDUCTIONS: u32 = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// The library's answer as an error that names the call.
pub(super) fn check(call: &str, status: Status) -> Result<(), String> {
    match status {
        Status::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(format!("{call} gives {other:?}")),
    }
}

/// The library's handle on one GPU.
pub(super) struct Handle {
    context: Arc<CudaContext>,
    pub(super) lt: lt::cublasLtHandle_t,
}

// SAFETY: the library's documentation allows one handle on several threads at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by us and destroyed once. What it answers helps nobody.
            let _ = unsafe { lt::cublasLtDestroy(self.lt) };
        }
    }
}

/// Handles of opened devices: making one takes a second.
static KNOWN: Mutex<Option<HashMap<DeviceId, Arc<Handle>>>> = Mutex::new(None);

/// A device goes: what was kept for it goes with its last product, so that a lost context is not held.
pub(super) fn forget(device: DeviceId) {
    let handle =
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|k| k.remove(&device));
    drop(handle);
}

impl Handle {
    /// That of an opened device, in its GPU's primary context, which is made current.
    pub(super) fn of(device: &DeviceInfo) -> Result<Arc<Self>, String> {
        library::open(&WANTED)?;
        // SAFETY: looks for the library by its names; one that is open already is found by its own.
        if !unsafe { lt::is_culib_present() } {
            return Err(
                "cuBLASLt was found but cannot be opened by its name; name its folder in LD_LIBRARY_PATH"
                    .into(),
            );
        }
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if let Some(handle) = known.get(&device.id) {
            handle.bind()?;
            return Ok(handle.clone());
        }
        let ordinal = device.label.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        let ordinal = ordinal.ok_or("runs on devices of the CUDA backend")?;
        let context =
            CudaContext::new(ordinal).map_err(|e| format!("no context of GPU {ordinal}: {:?}", e.0))?;
        context.bind_to_thread().map_err(|e| format!("cuCtxSetCurrent gives {:?}", e.0))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle; the context is current.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        let handle = Arc::new(Handle { context, lt: handle });
        known.insert(device.id, handle.clone());
        Ok(handle)
    }

    /// Makes its context current on this thread.
    pub(super) fn bind(&self) -> Result<(), String> {
        self.context.bind_to_thread().map_err(|e| format!("cuCtxSetCurrent gives {:?}", e.0))
    }
}

/// One of the library's objects that are made, filled in and destroyed: `$set` fills in one attribute.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $attribute:ty, $set:path, $destroy:path) => {
        $(#[$doc])*
        pub(super) struct $name(pub(super) $raw);

        // SAFETY: plain memory of the library's, changed by `&mut` alone.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made by us and destroyed once. What it answers helps nobody.
                let _ = unsafe { $destroy(self.0) };
            }
        }

        impl $name {
            /// Fills in an attribute whose type is `T`.
            pub(super) fn set<T: bytemuck::NoUninit>(
                &mut self,
                attribute: $attribute,
                value: T,
            ) -> Result<(), String> {
                let from = (&raw const value).cast::<c_void>();
                // SAFETY: reads as many bytes as it is told, of a value that lives.
                let answer = unsafe { $set(self.0, attribute, from, size_of::<T>()) };
                check(concat!(stringify!($name), "'s attribute"), answer)
            }
        }
    };
}

object! {
    /// What is computed.
    Operation, lt::cublasLtMatmulDesc_t, Attribute, lt::cublasLtMatmulDescSetAttribute, lt::cublasLtMatmulDescDestroy
}
object! {
    /// How a matrix lies.
    Layout, lt::cublasLtMatrixLayout_t, LayoutAttribute, lt::cublasLtMatrixLayoutSetAttribute, lt::cublasLtMatrixLayoutDestroy
}
object! {
    /// What algorithms are wanted.
    Wish, lt::cublasLtMatmulPreference_t, Preference, lt::cublasLtMatmulPreferenceSetAttribute, lt::cublasLtMatmulPreferenceDestroy
}

impl Operation {
    fn new(compute: Compute, scale: Type) -> Result<Self, String> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes a handle.
        check("cublasLtMatmulDescCreate", unsafe { lt::cublasLtMatmulDescCreate(&mut raw, compute, scale) })?;
        Ok(Operation(raw))
    }
}

impl Layout {
    /// A matrix stored by columns of `rows` elements, `ld` apart, and `batch` of them, `stride` apart.
    fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        ld: usize,
        batch: usize,
        stride: usize,
    ) -> Result<Self, String> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes a handle.
        check("cublasLtMatrixLayoutCreate", unsafe {
            lt::cublasLtMatrixLayoutCreate(&mut raw, type_of(dtype)?, rows as u64, cols as u64, ld as i64)
        })?;
        let mut layout = Layout(raw);
        if batch > 1 {
            layout.set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch as i32)?;
            layout.set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride as i64)?;
        }
        Ok(layout)
    }
}

impl Wish {
    fn new() -> Result<Self, String> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes a handle.
        check("cublasLtMatmulPreferenceCreate", unsafe { lt::cublasLtMatmulPreferenceCreate(&mut raw) })?;
        Ok(Wish(raw))
    }
}

fn type_of(dtype: DType) -> Result<Type, String> {
    match dtype {
        DType::F32 => Ok(Type::CUDA_R_32F),
        DType::F16 => Ok(Type::CUDA_R_16F),
        DType::BF16 => Ok(Type::CUDA_R_16BF),
        DType::F8E4M3 => Ok(Type::CUDA_R_8F_E4M3),
        DType::I8 => Ok(Type::CUDA_R_8I),
        DType::I32 => Ok(Type::CUDA_R_32I),
        other => Err(format!("has no {other}")),
    }
}

/// Whether the matrix lies by columns, and the elements from one of its rows or columns to the next; `None` where neither is contiguous.
pub(super) fn lies(matrix: &Matrix, rows: usize, cols: usize) -> Option<(bool, usize)> {
    let (by_columns, stride, least) = match *matrix {
        Matrix { col: 1, row, .. } if rows <= 1 || row >= cols => (false, row, cols),
        Matrix { row: 1, col, .. } if cols <= 1 || col >= rows => (true, col, rows),
        _ => return None,
    };
    // where there is but one row its stride means nothing
    Some((by_columns, stride.max(least).max(1)))
}

/// A product as the library knows it.
pub(super) struct Plan {
    pub(super) handle: Arc<Handle>,
    pub(super) operation: Operation,
    /// Of the library's A, B, C and D: our B, A, residual and C.
    pub(super) layouts: [Layout; 4],
    /// The algorithms that it proposes, the most promising first.
    pub(super) proposals: Vec<lt::cublasLtMatmulHeuristicResult_t>,
    /// The factor of the product, in the type of accumulation: f32, or 1 as an i32.
    pub(super) alpha: [u8; 4],
    /// The factor of the residual, likewise.
    pub(super) beta: [u8; 4],
}

/// Index of an operand by its name.
pub(super) fn operand(op: &MatMul, name: &str) -> Option<usize> {
    use perjoule_kernels::op::Op;
    Op::from(*op).operands().iter().position(|operand| operand.name == name)
}

impl Plan {
    /// Describes a product that [`super::cublaslt::reject`] does not refuse by its form, and asks for algorithms.
    ///
    /// # Errors
    /// Why the library cannot run it.
    pub(super) fn new(device: &DeviceInfo, op: &MatMul, alignment: Alignment) -> Result<Self, String> {
        let handle = Handle::of(device)?;
        let integers = op.a.dtype == DType::I8;
        let (compute, scale) = match op.a.dtype {
            DType::I8 => (Compute::CUBLAS_COMPUTE_32I, Type::CUDA_R_32I),
            DType::F32 if op.policy.tf32 => (Compute::CUBLAS_COMPUTE_32F_FAST_TF32, Type::CUDA_R_32F),
            _ => (Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F),
        };
        let mut operation = Operation::new(compute, scale)?;
        let strided = || "reads contiguous rows or columns".to_string();
        let (a_by_columns, a_ld) = lies(&op.a.strides, op.m, op.k).ok_or_else(strided)?;
        let (b_by_columns, b_ld) = lies(&op.b.strides, op.k, op.n).ok_or_else(strided)?;
        // CUBLAS_OP_T and CUBLAS_OP_N of cublas_api.h
        let transposed = |yes: bool| i32::from(yes);
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transposed(b_by_columns))?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transposed(a_by_columns))?;
        // addresses are filled in at each launch; that there are some decides which algorithms there are
        let somewhere = 256u64;
        if op.epilogue.bias.is_some() {
            let bias = lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, bias)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, somewhere)?;
        }
        if op.b_scale.is_some() {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, somewhere)?;
        }
        if op.a_scale.is_some() {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, somewhere)?;
        }
        let batch = op.batch;
        let matrix = |dtype, by_columns, rows, cols, ld, stride| match by_columns {
            true => Layout::new(dtype, rows, cols, ld, batch, stride),
            false => Layout::new(dtype, cols, rows, ld, batch, stride),
        };
        let out = |tensor: &perjoule_kernels::op::Tensor2| {
            let (_, ld) = lies(&tensor.strides, op.m, op.n).ok_or_else(strided)?;
            matrix(tensor.dtype, false, op.m, op.n, ld, tensor.strides.batch)
        };
        let between = op.epilogue.residual.unwrap_or(op.c);
        let layouts = [
            matrix(op.b.dtype, b_by_columns, op.k, op.n, b_ld, op.b.strides.batch)?,
            matrix(op.a.dtype, a_by_columns, op.m, op.k, a_ld, op.a.strides.batch)?,
            out(&between)?,
            out(&op.c)?,
        ];
        let mut wish = Wish::new()?;
        wish.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        wish.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTIONS)?;
        let last = operand(op, "c").unwrap_or_default();
        let aligned = |index: usize, dtype: DType| alignment.of(index).max(dtype.block_bytes() as u32);
        let residual = operand(op, "residual").unwrap_or(last);
        for (attribute, bytes) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned(1, op.b.dtype)),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned(0, op.a.dtype)),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned(residual, between.dtype)),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned(last, op.c.dtype)),
        ] {
            wish.set(attribute, bytes)?;
        }
        let bits =
            |integer: i32, float: f32| if integers { integer.to_ne_bytes() } else { float.to_ne_bytes() };
        let alpha = bits(1, op.epilogue.scale);
        let beta = if op.epilogue.residual.is_some() { bits(1, 1.0) } else { [0; 4] };
        let mut plan = Plan { handle, operation, layouts, proposals: Vec::new(), alpha, beta };
        plan.proposals = plan.ask(&wish)?;
        Ok(plan)
    }

    fn ask(&self, wish: &Wish) -> Result<Vec<lt::cublasLtMatmulHeuristicResult_t>, String> {
        let [a, b, c, d] = &self.layouts;
        // SAFETY: plain numbers, of which 0 is a value.
        let empty: lt::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let (mut list, mut count) = (vec![empty; PROPOSALS], 0);
        // SAFETY: objects that live; writes at most as many results as there is room for, and their number.
        let answer = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle.lt,
                self.operation.0,
                a.0,
                b.0,
                c.0,
                d.0,
                wish.0,
                PROPOSALS as i32,
                list.as_mut_ptr(),
                &mut count,
            )
        };
        if answer != Status::CUBLAS_STATUS_SUCCESS || count <= 0 {
            return Err(format!("cuBLASLt has no algorithm for it ({answer:?})"));
        }
        list.truncate(count as usize);
        list.retain(|result| result.state == Status::CUBLAS_STATUS_SUCCESS);
        match list.is_empty() {
            true => Err("cuBLASLt has no algorithm for it".into()),
            false => Ok(list),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_lie_by_rows_or_columns_or_neither() {
        assert_eq!(lies(&Matrix::row_major(3, 4), 3, 4), Some((false, 4)));
        assert_eq!(lies(&Matrix::col_major(3, 4), 3, 4), Some((true, 3)));
        // a row alone may have any stride
        assert_eq!(lies(&Matrix { row: 0, col: 1, batch: 0 }, 1, 4), Some((false, 4)));
        assert_eq!(lies(&Matrix { row: 1, col: 7, batch: 0 }, 4, 1), Some((true, 7)));
        assert_eq!(lies(&Matrix { row: 8, col: 2, batch: 0 }, 3, 4), None);
        // rows that overlap
        assert_eq!(lies(&Matrix { row: 2, col: 1, batch: 0 }, 3, 4), None);
    }
}
