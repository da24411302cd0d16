//! Tensors: typed, strided views of a device's memory.

use crate::device::Device;
use crate::element::Element;
use perjoule_kernels::{Buffer, DType, Error, Pending, Result};
use std::ops::{Bound, RangeBounds};

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
        Self::new(device, dtype, shape.into(), Device::alloc)
    }

    /// A tensor of any content, for an op that writes every element of it.
    pub(crate) fn unwritten(device: &Device, dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::new(device, dtype, shape.into(), Device::alloc_any)
    }

    fn new(
        device: &Device,
        dtype: DType,
        shape: Vec<usize>,
        alloc: fn(&Device, u64) -> Result<Buffer>,
    ) -> Result<Self> {
        let buffer = alloc(device, bytes(dtype, &shape)? as u64)?;
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
        let tensor = Self::unwritten(device, dtype, shape)?;
        device.default_stream()?.write(&tensor.buffer, data)?;
        Ok(tensor)
    }

    /// A view of a buffer of your own: `strides` in elements. What another stream than the default one writes into it, the default stream
    /// must be made to wait for ([`perjoule_kernels::Stream::follow`]).
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

    /// The same elements under other sizes, of which there must be as many. Nothing is copied; a view whose strides do not allow that
    /// is refused.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        if count(&shape)? != self.elements() {
            return Err(invalid("shape", &shape, format!("{} elements in all", self.elements())));
        }
        bytes(self.dtype, &shape)?; // whole blocks
        let strides = match self.is_dense() {
            true => Some(dense(&shape)),
            false if self.dtype.is_block() => None,
            false => restride(&self.shape, &self.strides, &shape),
        };
        let Some(strides) = strides else {
            let expected =
                format!("strides that the shape {shape:?} divides evenly; call Tensor::contiguous first");
            return Err(invalid("strides", &self.strides, expected));
        };
        Ok(Tensor { strides, shape, ..self.clone() })
    }

    /// The indices `range` of one dimension, such as `2..5`, `..5` or `2..`. Nothing is copied.
    pub fn slice(&self, dimension: usize, range: impl RangeBounds<usize>) -> Result<Tensor> {
        let Some(&size) = self.shape.get(dimension) else {
            return Err(invalid("dimension", dimension, format!("below {}", self.shape.len())));
        };
        let start = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&at) => at.saturating_add(1),
            Bound::Excluded(&at) => at,
            Bound::Unbounded => size,
        };
        if start > end || end > size {
            return Err(invalid("range", start..end, format!("within 0..{size}")));
        }
        let len = self.dtype.block_len();
        let whole = start.is_multiple_of(len) && end.is_multiple_of(len);
        if !whole && !self.strides[dimension].is_multiple_of(len) {
            let expected = format!("multiples of the {} block of {len}", self.dtype);
            return Err(invalid("range", start..end, expected));
        }
        let mut view = self.clone();
        view.shape[dimension] = end - start;
        if view.elements() > 0 {
            let at = start * self.strides[dimension];
            let at = self.dtype.bytes(at).ok_or_else(|| invalid("range", start..end, "whole blocks"))?;
            view.buffer = self.buffer.view(at, self.buffer.bytes() - at)?;
        }
        Ok(view)
    }

    /// Itself where it [`is_dense`](Self::is_dense), else a dense copy. Every dtype is copied unchanged, block formats block by block.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_dense() { Ok(self.clone()) } else { self.copy() }
    }

    /// A dense copy in new memory on the same device.
    pub fn copy(&self) -> Result<Tensor> {
        crate::ops::copy(self)
    }

    /// A dense copy on another device (or the same), by way of the host. Blocks as [`Tensor::to_bytes`] does.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        Self::from_bytes(device, self.dtype, &self.to_bytes()?, self.shape())
    }

    /// Overwrites all elements of a dense tensor, row-major, in the order of the default stream. Every view of the memory sees it.
    pub fn write<T: Element>(&self, data: &[T]) -> Result<()> {
        self.expect_element::<T>()?;
        if !self.is_dense() {
            return Err(invalid("strides", &self.strides, "a dense tensor to be written"));
        }
        if data.len() != self.elements() {
            return Err(invalid("data", data.len(), format!("{} elements", self.elements())));
        }
        self.device.default_stream()?.write(&self.buffer, bytemuck::cast_slice(data))
    }

    fn expect_element<T: Element>(&self) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(invalid("dtype", T::DTYPE, format!("{}: cast it with ops::cast first", self.dtype)))
    }

    /// Its elements in row-major order. Blocks until all earlier work on the device's default stream is done.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_element::<T>()?;
        // a byte vector need not be aligned for T
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.to_bytes()?))
    }

    /// [`Tensor::to_vec`] to be awaited, by any executor. The read is submitted at once: later writes do not change it.
    pub fn to_vec_async<T: Element>(&self) -> impl Future<Output = Result<Vec<T>>> + use<T> {
        let refused = self.expect_element::<T>();
        let bytes = self.to_bytes_async();
        async move {
            refused?;
            Ok(bytemuck::allocation::pod_collect_to_vec(&bytes.await?))
        }
    }

    /// Its bytes in row-major order. Blocks until all earlier work on the device's default stream is done.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        #[cfg(not(target_arch = "wasm32"))]
        {
            self.gather(self.read()?.wait()?)
        }
        #[cfg(target_arch = "wasm32")]
        Err(Error::Unsupported { what: "blocking", why: "a browser awaits Tensor::to_bytes_async".into() })
    }

    /// [`Tensor::to_bytes`] to be awaited, by any executor. The read is submitted at once: later writes do not change it.
    pub fn to_bytes_async(&self) -> impl Future<Output = Result<Vec<u8>>> + use<> {
        let (view, pending) = (self.clone(), self.read());
        async move { view.gather(pending?.await?) }
    }

    /// The bytes from the first to the last element, gaps of a strided view included: to be waited for or awaited.
    pub fn read(&self) -> Result<Pending<Vec<u8>>> {
        let extent = self.extent().and_then(|e| self.dtype.bytes(e));
        let extent = extent.ok_or(Error::Overflow { op: "tensor", what: "its size in bytes" })?;
        let view = self.buffer.view(0, extent)?;
        Ok(self.device.default_stream()?.read(&view))
    }

    /// The elements among the bytes of the extent.
    fn gather(&self, extent: Vec<u8>) -> Result<Vec<u8>> {
        if self.is_dense() {
            return Ok(extent);
        }
        let (len, size) = (self.dtype.block_len(), self.dtype.block_bytes());
        let (mut shape, mut strides) = (self.shape.clone(), self.strides.clone());
        if len > 1 {
            // in blocks
            let whole = |(n, s): (&usize, &usize)| *n == 1 || s.is_multiple_of(len);
            let last = shape.len() - 1;
            if strides[last] != 1 || !shape[..last].iter().zip(&strides).all(whole) {
                let expected = "blocks that run along the last dimension";
                return Err(invalid("strides", &self.strides, expected));
            }
            shape[last] /= len;
            strides[..last].iter_mut().for_each(|s| *s /= len);
        }
        let elements: usize = shape.iter().product();
        let mut out = Vec::with_capacity(elements * size);
        let mut index = vec![0usize; shape.len()];
        for _ in 0..elements {
            let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
            out.extend_from_slice(&extent[at * size..(at + 1) * size]);
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Ok(out)
    }
}

/// Strides under which `shape` shows the elements of a view in the same order; `None` where no strides do.
fn restride(old: &[usize], strides: &[usize], shape: &[usize]) -> Option<Vec<usize>> {
    let mut dims = old.iter().zip(strides).rev().filter(|(size, _)| **size != 1).peekable();
    let mut new = vec![1; shape.len()];
    let mut left = (0..shape.len()).rev().peekable();
    while let Some((&size, &stride)) = dims.next() {
        // a run of old dimensions that lie one after the other
        let mut run = size;
        while let Some((&size, _)) = dims.next_if(|(_, s)| **s == stride * run) {
            run *= size;
        }
        let mut taken = 1;
        while taken < run {
            let d = left.next()?;
            new[d] = taken * stride;
            taken *= shape[d];
        }
        if taken != run {
            return None;
        }
    }
    left.all(|d| shape[d] == 1).then_some(new)
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
        write!(f, "Tensor({} {:?}", self.dtype, self.shape)?;
        if !self.is_dense() {
            write!(f, " with strides {:?}", self.strides)?;
        }
        write!(f, " on {})", self.device.info().label)
    }
}
