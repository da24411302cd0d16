//! Tensor maps of queries and caches: four dimensions, boxes of 128 bytes along the head; and bodies whose kernels take them.

use super::Params;
use crate::compile::Function;
use crate::driver::check;
use crate::launch::steps::Pointer;
use crate::launch::{Body, Call, Dims, Param, map_param, param};
use cudarc::driver::sys;
use perjoule_kernels::op::Attention;
use perjoule_kernels::{DType, Error, Result, Rows};

/// A 16-bit operand as the copy engine walks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) dtype: DType,
    /// Counts, the elements of a head first.
    pub(super) dims: [usize; 4],
    /// Elements between neighbours in the other dimensions.
    pub(super) strides: [usize; 3],
    /// Sides of a box; the first is 64 elements.
    pub(super) sides: [usize; 3],
}

/// Bytes of an element; of a line of a box under the widest swizzle; what strides are multiples of, and below what.
const ELEMENT: usize = 2;
const LINE: usize = 128;
const STEP: usize = 16;
const FAR: usize = 1 << 40;

impl Map {
    /// Queries as `(element, head of a pack, row, pack)`, in boxes of 64 pairs of a row and a head; those of f32 as they are when rounded.
    pub(super) fn queries(op: &Attention, pack: usize) -> Self {
        let q = match op.q_dtype {
            DType::F32 => Rows::grid(op.q.outer, op.q.inner, op.q.len),
            _ => op.q,
        };
        Map {
            dtype: op.kv_dtype,
            dims: [q.len, pack, q.outer, q.inner / pack],
            strides: [q.inner_stride, q.outer_stride, q.inner_stride.saturating_mul(pack)],
            sides: [pack, 64 / pack, 1],
        }
    }

    /// Keys or values as `(element, token, head, sequence or block)`, in boxes of `tokens`.
    pub(super) fn cache(op: &Attention, tokens: usize) -> Self {
        let kv = op.kv;
        let (count, slow) = kv.paging.map_or((kv.capacity, op.batch), |p| (p.block, p.blocks));
        Map {
            dtype: op.kv_dtype,
            dims: [kv.head_dim, count, kv.kv_heads, slow],
            strides: [kv.token_stride, kv.head_stride, kv.batch_stride],
            sides: [tokens, 1, 1],
        }
    }

    /// Whether the copy engine can walk it: something is there, and no stride that is used is odd, 0 or too far.
    pub(super) fn fits(&self) -> bool {
        let counts = self.dims.iter().all(|&count| (1..=u32::MAX as usize).contains(&count));
        let strides = self.dims[1..].iter().zip(&self.strides);
        let fits = |bytes: usize| bytes > 0 && bytes.is_multiple_of(STEP) && bytes < FAR;
        counts
            && strides
                .clone()
                .all(|(&count, &stride)| count == 1 || stride.checked_mul(ELEMENT).is_some_and(fits))
    }

    /// The tensor map of the operand at `address`, a multiple of 16 bytes.
    pub(super) fn encode(&self, address: u64) -> Result<sys::CUtensorMap> {
        use sys::CUtensorMapDataType_enum as Type;
        let data = match self.dtype {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let dims = self.dims.map(|count| count as u64);
        // what no second neighbour uses may be anything that the driver accepts
        let bytes = |i: usize| match self.dims[i + 1] {
            1 => (self.dims[0] * ELEMENT).next_multiple_of(STEP) as u64,
            _ => (self.strides[i] * ELEMENT) as u64,
        };
        let strides = [bytes(0), bytes(1), bytes(2)];
        let [a, b, c] = self.sides.map(|side| side as u32);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: writes the map; reads as many sizes, strides and sides as the rank of 4 has.
        let answer = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                data,
                4,
                address as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                [(LINE / ELEMENT) as u32, a, b, c].as_ptr(),
                [1; 4].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(answer)
            .map_err(|e| Error::Unsupported { what: "a tensor map", why: format!("{self:?}: {e}") })?;
        Ok(map)
    }
}

/// A kernel that takes parameters, tensor maps and pointers, and perhaps one behind it that takes the same without maps.
pub(super) struct Mapped {
    pub(super) params: Params,
    pub(super) function: Function,
    /// Maps, and what they describe.
    pub(super) maps: Vec<(Map, Pointer)>,
    pub(super) pointers: Vec<Pointer>,
    pub(super) dims: Dims,
    /// Rounds the queries into scratch first, where they are of f32.
    pub(super) first: Option<(Function, Dims)>,
    pub(super) then: Option<(Function, Dims)>,
    pub(super) scratch: u64,
}

/// Most maps, and most pointers.
const MAPS: usize = 3;
const POINTERS: usize = 10;

impl Body for Mapped {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        if self.dims.grid.contains(&0) {
            return Ok(());
        }
        let mut maps = [sys::CUtensorMap { opaque: [0; 16] }; MAPS];
        for (to, (map, pointer)) in maps.iter_mut().zip(&self.maps) {
            *to = map.encode(pointer.address(call)?)?;
        }
        if let (Some((function, dims)), Some((_, rounded))) = (&self.first, self.maps.first()) {
            let (from, to) = (call.operand(0), rounded.address(call)?);
            call.start(function, *dims, &[param(&self.params), param(&from), param(&to)])?;
        }
        let mut addresses = [0u64; POINTERS];
        for (address, pointer) in addresses.iter_mut().zip(&self.pointers) {
            *address = pointer.address(call)?;
        }
        let (maps, addresses) = (&maps[..self.maps.len()], &addresses[..self.pointers.len()]);
        let mut list: [Param<'_>; 1 + MAPS + POINTERS] = [param(&self.params); 1 + MAPS + POINTERS];
        let pointers = 1 + maps.len();
        list[1..pointers].iter_mut().zip(maps).for_each(|(to, map)| *to = map_param(map));
        list[pointers..].iter_mut().zip(addresses).for_each(|(to, address)| *to = param(address));
        call.start(&self.function, self.dims, &list[..pointers + addresses.len()])?;
        let Some((function, dims)) = &self.then else { return Ok(()) };
        list[1..].iter_mut().zip(addresses).for_each(|(to, address)| *to = param(address));
        call.start(function, *dims, &list[..1 + addresses.len()])
    }
}
