//! Tensors: typed, strided views of a device's memory.

use crate::device::Device;
use crate::element::Element;
use perjoule_kernels::{Buffer, DType, Error, Pending, Result};

/// A tensor on a device. Cloning and viewing share the memory.
#[derive(Clone)]
pub struct Tensor {
    device: Device,
    /// From the first element of the view on.
    buffer: Buffer,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

fn invalid(field: &'static str, got: impl std::fmt::Debug, expected: impl Into<String>) -> Error {
    Error::Invalid { op: "tensor", field, got: format!("{got:?}"), expected: expected.into() }
}

fn count(shape: &[usize]) -> Result<usize> {
    // an empty tensor is empty, however absurd its other sizes
    if shape.contains(&0) {
        return Ok(0);
    }
    let product = shape.iter().try_fold(1usize, |all, &s| all.checked_mul(s));
    product.ok_or(Error::Overflow { op: "tensor", what: "the number of elements" })
}

fn dense(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(device: &Device, dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        let bytes = bytes(dtype, &shape)?;
        let buffer = device.alloc(bytes as u64)?;
        Ok(Tensor { device: device.clone(), buffer, dtype, strides: dense(&shape), shape })
    }

    /// Copies a slice, row-major.
    pub fn from_slice<T: Element>(device: &Device, data: &[T], shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::from_bytes(device, T::DTYPE, bytemuck::cast_slice(data), shape)
    }

    /// Copies bytes, row-major: for block formats and f8e4m3, or data as a file holds it.
    pub fn from_bytes(
        device: &Device,
        dtype: DType,
        data: &[u8],
        shape: impl Into<Vec<usize>>,
    ) -> Result<Self> {
        let shape = shape.into();
        let need = bytes(dtype, &shape)?;
        if data.len() != need {
            return Err(invalid(
                "shape",
                &shape,
                format!("{} bytes of {dtype}, as the data has", data.len()),
            ));
        }
        let tensor = Self::zeros(device, dtype, shape)?;
        device.default_stream()?.write(&tensor.buffer, data)?;
        Ok(tensor)
    }

    /// A view of a buffer of your own: `strides` in elements.
    pub fn from_buffer(
        device: &Device,
        buffer: Buffer,
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        strides: impl Into<Vec<usize>>,
    ) -> Result<Self> {
        let tensor =
            Tensor { device: device.clone(), buffer, dtype, shape: shape.into(), strides: strides.into() };
        if tensor.shape.len() != tensor.strides.len() {
            return Err(invalid("strides", &tensor.strides, "one for each dimension"));
        }
        // a stride of 0 repeats elements for nothing, but they must be countable
        let need = count(&tensor.shape).ok().and(tensor.extent()).and_then(|e| dtype.bytes(e));
        match need {
            Some(need) if need <= tensor.buffer.bytes() => Ok(tensor),
            _ => Err(invalid("shape", &tensor.shape, "a view that lies within the buffer")),
        }
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its memory, from the first element on.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its sizes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements from one index of each dimension to the next.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        count(&self.shape).unwrap_or(0)
    }

    /// Whether the elements lie one after the other in row-major order.
    pub fn is_dense(&self) -> bool {
        let dense = dense(&self.shape);
        self.shape.iter().zip(&self.strides).zip(&dense).all(|((&n, s), d)| n <= 1 || s == d)
            || self.elements() == 0
    }

    fn extent(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let span = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(0usize, |all, (&n, &s)| all.checked_add((n - 1).checked_mul(s)?))?;
        span.checked_add(1)
    }

    /// The same elements with two dimensions swapped. Nothing is copied.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        let rank = self.shape.len();
        if a >= rank || b >= rank {
            return Err(invalid("dimensions", (a, b), format!("below {rank}")));
        }
        if self.dtype.is_block() && a != b {
            // the view is right; what it cannot do is checked by the op that reads it
            let last = rank - 1;
            if self.strides[last] != 1 {
                return Err(invalid("strides", &self.strides, "blocks that run along the last dimension"));
            }
        }
        let mut view = self.clone();
        view.shape.swap(a, b);
        view.strides.swap(a, b);
        Ok(view)
    }

    /// The same elements under other sizes. The tensor must be dense.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        if !self.is_dense() {
            return Err(invalid("strides", &self.strides, "a dense tensor; copy it first"));
        }
        if count(&shape)? != self.elements() {
            return Err(invalid("shape", &shape, format!("{} elements in all", self.elements())));
        }
        let mut view = self.clone();
        view.strides = dense(&shape);
        view.shape = shape;
        Ok(view)
    }

    /// The indices `range` of one dimension. Nothing is copied.
    pub fn slice(&self, dimension: usize, range: std::ops::Range<usize>) -> Result<Tensor> {
        let Some(&size) = self.shape.get(dimension) else {
            return Err(invalid("dimension", dimension, format!("below {}", self.shape.len())));
        };
        if range.start > range.end || range.end > size {
            return Err(invalid("range", &range, format!("within 0..{size}")));
        }
        let mut view = self.clone();
        view.shape[dimension] = range.len();
        if view.elements() > 0 {
            let at = range.start * self.strides[dimension];
            let at = self.dtype.bytes(at).ok_or_else(|| invalid("range", &range, "whole blocks"))?;
            view.buffer = self.buffer.view(at, self.buffer.bytes() - at)?;
        }
        Ok(view)
    }

    /// Its elements in row-major order. Blocks until all earlier work on the device's default stream is done.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            return Err(invalid("dtype", T::DTYPE, format!("{}: cast it with ops::cast first", self.dtype)));
        }
        let bytes = self.to_bytes()?;
        // a byte vector need not be aligned for T
        Ok(bytemuck::allocation::pod_collect_to_vec(&bytes))
    }

    /// Its bytes in row-major order.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        #[cfg(not(target_arch = "wasm32"))]
        {
            let extent = self.read()?.wait()?;
            self.gather(&extent)
        }
        #[cfg(target_arch = "wasm32")]
        Err(Error::Unsupported { what: "blocking", why: "a browser awaits Tensor::read".into() })
    }

    /// The bytes from the first to the last element, gaps of a strided view included: to be waited for or awaited.
    pub fn read(&self) -> Result<Pending<Vec<u8>>> {
        let extent = self.extent().and_then(|e| self.dtype.bytes(e));
        let extent = extent.ok_or(Error::Overflow { op: "tensor", what: "its size in bytes" })?;
        let view = self.buffer.view(0, extent)?;
        Ok(self.device.default_stream()?.read(&view))
    }

    fn gather(&self, extent: &[u8]) -> Result<Vec<u8>> {
        if self.is_dense() {
            return Ok(extent.to_vec());
        }
        if self.dtype.is_block() {
            return Err(invalid("strides", &self.strides, "a dense tensor of blocks"));
        }
        let size = self.dtype.block_bytes();
        let mut out = Vec::with_capacity(self.elements() * size);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..self.elements() {
            let at: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
            out.extend_from_slice(&extent[at * size..(at + 1) * size]);
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < self.shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Ok(out)
    }
}

fn bytes(dtype: DType, shape: &[usize]) -> Result<usize> {
    let elements = count(shape)?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.block_len()) {
        return Err(invalid("shape", shape, format!("a last dimension of whole {dtype} blocks")));
    }
    let bytes = dtype.bytes(elements).filter(|&b| b <= isize::MAX as u64).map(|b| b as usize);
    bytes.ok_or(Error::Overflow { op: "tensor", what: "its size in bytes" })
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?} on {})", self.dtype, self.shape, self.device.info().label)
    }
}
