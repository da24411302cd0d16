//! Memory of a device, slices of it, and the arguments of a launch.

use crate::device::{DeviceId, Shared};
use crate::error::{Error, Result};
use std::any::Any;
use std::sync::Arc;

/// How an op touches an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// Only read.
    Read,
    /// Only written; every element the op defines is written, whatever was there before.
    Write,
    /// Read and written.
    ReadWrite,
}

impl Access {
    /// Whether the op writes the operand.
    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// A block of memory that a backend owns or has been handed by a caller.
///
/// Backends implement it for their own type; a kernel row gets that type back by downcasting (`&dyn Memory` is `&dyn Any`).
pub trait Memory: Any + Shared {
    /// The device it lives on.
    fn device(&self) -> DeviceId;
    /// An address that is unique within the device, so that overlap can be checked and alignment seen.
    fn base(&self) -> u64;
    /// Size in bytes.
    fn bytes(&self) -> u64;
}

/// A slice of [`Memory`]: an arena slice, a weight and a caller's slice are all the same thing. Cloning shares the memory.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<dyn Memory>,
    at: u64,
    bytes: u64,
}

impl Buffer {
    /// The whole of a block of memory.
    pub fn new(memory: Arc<dyn Memory>) -> Self {
        let bytes = memory.bytes();
        Buffer { memory, at: 0, bytes }
    }

    /// `bytes` bytes from `at` on, sharing the memory.
    pub fn view(&self, at: u64, bytes: u64) -> Result<Buffer> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.bytes => {
                Ok(Buffer { memory: self.memory.clone(), at: self.at + at, bytes })
            }
            _ => Err(Error::OutOfRange { at, bytes, have: self.bytes }),
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Offset of the slice in its memory, in bytes.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// The memory that the slice lies in.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Address of the first byte within the device.
    pub fn address(&self) -> u64 {
        self.memory.base() + self.at
    }

    /// The device it lives on.
    pub fn device(&self) -> DeviceId {
        self.memory.device()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:?} {:#x}+{})", self.device(), self.address(), self.bytes)
    }
}

/// One argument of a launch.
///
/// Host slices are borrowed for that launch alone, without a copy. They are accepted where
/// [`DeviceInfo::synchronous`](crate::DeviceInfo) holds (the launch is over when it returns) and refused while capturing.
pub enum Arg<'a> {
    /// Memory of the device.
    Buf(&'a Buffer),
    /// A host slice to read.
    Host(&'a [u8]),
    /// A host slice to write.
    HostMut(&'a mut [u8]),
}

impl<'a> From<&'a Buffer> for Arg<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Arg::Buf(buffer)
    }
}

impl Arg<'_> {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Arg::Buf(b) => b.bytes(),
            Arg::Host(s) => s.len() as u64,
            Arg::HostMut(s) => s.len() as u64,
        }
    }

    /// Whether it is a buffer in the same block of memory as `other`.
    pub(crate) fn lies_in(&self, other: &Buffer) -> bool {
        match self {
            Arg::Buf(b) => std::ptr::addr_eq(Arc::as_ptr(&b.memory), Arc::as_ptr(&other.memory)),
            Arg::Host(_) | Arg::HostMut(_) => false,
        }
    }

    /// Address of the first byte: within the device for buffers, in this process for host slices.
    pub fn address(&self) -> u64 {
        match self {
            Arg::Buf(b) => b.address(),
            Arg::Host(s) => s.as_ptr() as u64,
            Arg::HostMut(s) => s.as_ptr() as u64,
        }
    }
}
