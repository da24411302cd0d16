//! Tensor maps: how the copy engine sees an operand in memory.

use crate::driver::check;
use cudarc::driver::sys;
use perjoule_kernels::{DType, Error, Result};

/// An operand as the copy engine walks it: `batch` matrices of `lines` lines of `len` contiguous elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) dtype: DType,
    /// Whether f32 elements are rounded to tf32 on the way into shared memory.
    pub(super) tf32: bool,
    pub(super) len: usize,
    pub(super) lines: usize,
    /// Elements from one line to the next.
    pub(super) stride: usize,
    pub(super) batch: usize,
    /// Elements from one matrix to the next; 0 shares it.
    pub(super) batch_stride: usize,
    /// Lines of a box; its other side is 128 bytes.
    pub(super) box_lines: usize,
}

/// Strides are multiples of so many bytes, and below [`MOST_BYTES`].
const STRIDE_BYTES: usize = 16;
const MOST_BYTES: usize = 1 << 40;

impl Lines {
    fn size(&self) -> usize {
        self.dtype.block_bytes()
    }

    /// Whether a tensor map can describe it.
    pub(super) fn fits(&self) -> bool {
        let fits = |count: usize, stride: usize| {
            let bytes = stride.checked_mul(self.size());
            count <= 1 || bytes.is_some_and(|bytes| bytes.is_multiple_of(STRIDE_BYTES) && bytes < MOST_BYTES)
        };
        let apart = self.lines <= 1 || self.stride >= 1;
        apart && fits(self.lines, self.stride) && fits(self.batch, self.batch_stride)
    }

    /// Whether it can be stored to: the copy engine writes whole pieces of 16 bytes, beyond the end of a line, too.
    pub(super) fn ends_fit(&self) -> bool {
        (self.len * self.size()).is_multiple_of(STRIDE_BYTES)
    }

    /// Matrices of the tensor map: one where the batch shares it.
    pub(super) fn matrices(&self) -> usize {
        if self.batch_stride == 0 { 1 } else { self.batch }
    }

    /// The tensor map of the operand at `address`, a multiple of 16 bytes.
    pub(super) fn encode(&self, address: u64) -> Result<sys::CUtensorMap> {
        use sys::CUtensorMapDataType_enum as Type;
        let data = match self.dtype {
            DType::F32 if self.tf32 => Type::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        // a stride that no second line or matrix uses may be anything: one that the driver accepts
        let bytes = |count: usize, stride: usize| match count {
            0 | 1 => (self.len * self.size()).next_multiple_of(STRIDE_BYTES) as u64,
            _ => (stride * self.size()) as u64,
        };
        let dims = [self.len as u64, self.lines as u64, self.matrices() as u64];
        let strides = [bytes(self.lines, self.stride), bytes(self.matrices(), self.batch_stride)];
        let boxes = [(128 / self.size()) as u32, self.box_lines as u32, 1];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: writes the map; reads as many sizes, strides and sides as the rank of 3 has.
        let answer = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                data,
                3,
                address as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1; 3].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(answer)
            .map_err(|e| Error::Unsupported { what: "a tensor map", why: format!("{self:?}: {e}") })?;
        Ok(map)
    }
}
