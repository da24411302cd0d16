//! Bodies that start the same kernels on the same grids at every launch: what most rows are.

use super::rows::caps;
use super::{Body, Call, Dims, Param, launch, param};
use crate::compile::Function;
use bytemuck::NoUninit;
use perjoule_kernels::{Buffer, Launch, Request, Result};

/// A pointer that a kernel takes.
#[derive(Debug, Clone)]
pub(super) enum Pointer {
    /// An operand of the op, by its index.
    Operand(usize),
    /// The null pointer: the op has no such operand.
    Nothing,
    /// The scratch, from that byte on.
    Scratch(u64),
    /// The stream's counters.
    Counters,
    /// A table that the row made when it was prepared.
    Table(Buffer),
}

impl Pointer {
    /// An operand where it is present.
    pub(super) fn some(index: Option<usize>) -> Self {
        index.map_or(Pointer::Nothing, Pointer::Operand)
    }

    /// Where it points to in a launch.
    pub(super) fn address(&self, call: &mut Call<'_>) -> Result<u64> {
        Ok(match self {
            Pointer::Operand(index) => call.operand(*index),
            Pointer::Nothing => 0,
            Pointer::Scratch(offset) => call.scratch() + offset,
            Pointer::Counters => call.counters()?,
            Pointer::Table(buffer) => call.touch(buffer)?,
        })
    }
}

/// One kernel's start: its parameters are a struct and, behind it, pointers.
pub(super) struct Step<P> {
    pub(super) function: Function,
    pub(super) dims: Dims,
    pub(super) params: P,
    pub(super) pointers: Vec<Pointer>,
}

/// Kernels in a row.
pub(super) struct Steps<P> {
    pub(super) scratch: u64,
    pub(super) list: Vec<Step<P>>,
}

impl<P> Steps<P> {
    /// A single kernel without scratch.
    pub(super) fn one(function: Function, dims: Dims, params: P, pointers: Vec<Pointer>) -> Self {
        Steps { scratch: 0, list: vec![Step { function, dims, params, pointers }] }
    }
}

/// The launchable form of kernels that all take turns (`take_turn` of `common/element.cuh`): on Hopper each may be started early.
pub(super) fn prepared<P>(request: &Request<'_>, mut steps: Steps<P>) -> Result<Box<dyn Launch>>
where
    P: NoUninit + Send + Sync,
{
    let early = caps(request.info).is_some_and(|caps| caps.sm >= 90);
    steps.list.iter_mut().for_each(|step| step.dims.early = early);
    launch(steps)
}

/// Most pointers of a kernel.
const MAX_POINTERS: usize = 16;

impl<P: NoUninit + Send + Sync> Body for Steps<P> {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        for step in &self.list {
            let mut addresses = [0u64; MAX_POINTERS];
            for (address, pointer) in addresses.iter_mut().zip(&step.pointers) {
                *address = pointer.address(call)?;
            }
            let mut params: [Param<'_>; MAX_POINTERS + 1] = [param(&step.params); MAX_POINTERS + 1];
            for (to, address) in params[1..].iter_mut().zip(&addresses) {
                *to = param(address);
            }
            call.start(&step.function, step.dims, &params[..=step.pointers.len()])?;
        }
        Ok(())
    }
}

/// A table in the device's memory that every stream may read from now on.
pub(super) fn table(request: &Request<'_>, values: &[u64]) -> Result<Buffer> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = request.device.alloc_any(bytes.len() as u64)?;
    let mut stream = request.device.stream()?;
    stream.write(&buffer, bytes)?;
    stream.sync().wait()?;
    Ok(buffer)
}
