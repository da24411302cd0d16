//! From a checked launch to dispatches: what every row's body is made of.

pub(crate) mod argmax;
pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod kv;
pub(crate) mod limits;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod qk;
pub(crate) mod quantise;
pub(crate) mod reduce;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod softmax;

use crate::device::{WebGpuDevice, computes};
use crate::inner::{Inner, OFFSETS_BYTES};
use crate::memory::memory_of;
use crate::pipeline::{Checks, Kernel, Pipeline, Shader};
use crate::shader::{MAX_BINDINGS, Variant};
use crate::stream::WebGpuStream;
use crate::work::Dispatch;
use bytemuck::NoUninit;
use perjoule_kernels::op::{MAX_OPERANDS, Op};
use perjoule_kernels::{Arg, Buffer, Checked, Error, Launch, Request, Result, Stream};
use perjoule_shaders::Source;
use std::any::Any;
use std::sync::Arc;

/// Workgroups of a dispatch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims(pub(crate) [u32; 3]);

/// Workgroups that a dimension of a grid has on every adapter.
const MOST: u64 = 65_535;

impl Dims {
    /// Enough workgroups of `size` invocations for `count` of them, in two dimensions where one does not suffice: kernels number them by
    /// `group_number` of `common/layout.wgsl`, and cut off what is too much.
    pub(crate) fn line(count: u64, size: u64) -> Result<Self> {
        let groups = count.div_ceil(size);
        if groups > MOST * MOST || count > u64::from(u32::MAX) {
            return Err(Error::Unsupported {
                what: "an op of this size",
                why: format!("it takes {count} invocations, more than a number of 32 bits counts"),
            });
        }
        let y = groups.div_ceil(MOST).max(1);
        Ok(Dims([groups.div_ceil(y) as u32, y as u32, 1]))
    }

    /// A grid as it is.
    pub(crate) fn grid(x: usize, y: usize, z: usize) -> Result<Self> {
        let one = |n: usize| {
            u32::try_from(n).ok().filter(|&n| u64::from(n) <= MOST).ok_or_else(|| Error::Unsupported {
                what: "an op of this size",
                why: format!("{n} workgroups are more than a dimension of a grid has"),
            })
        };
        Ok(Dims([one(x)?, one(y)?, one(z)?]))
    }
}

/// What a kernel binds.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// An operand of the op, by its index.
    Operand(usize),
    /// A part of an operand, in bytes from its beginning: of what is too large for a binding.
    Part(usize, u64, u64),
    /// The scratch: its bytes from one on, and how many. Beginnings are multiples of 256.
    Scratch(u64, u64),
    /// A table that the row made when it was prepared.
    Table(Buffer),
}

impl Place {
    /// An operand where it is present.
    pub(crate) fn some(index: Option<usize>) -> Option<Self> {
        index.map(Place::Operand)
    }
}

/// One kernel's start: what it binds, in the order of its bindings, and its parameters.
pub(crate) struct Step {
    inner: Arc<Inner>,
    /// A number for its bind groups.
    id: u64,
    kernel: Arc<Kernel>,
    dims: Dims,
    params: wgpu::Buffer,
    places: Vec<Place>,
}

impl Step {
    /// `params`: the bytes of the source's `Params`.
    pub(crate) fn new(
        inner: &Arc<Inner>,
        kernel: Arc<Kernel>,
        dims: Dims,
        params: &[u8],
        places: Vec<Place>,
    ) -> Self {
        let params = inner.uniform("parameters", params);
        Step { inner: inner.clone(), id: inner.unique(), kernel, dims, params, places }
    }

    /// Starts it.
    pub(crate) fn start(
        &self,
        stream: &mut WebGpuStream,
        kernel: &'static str,
        operands: &[&Buffer],
        scratch: Option<&Buffer>,
    ) -> Result<()> {
        if self.dims.0.contains(&0) {
            return Ok(());
        }
        let wrong = |operand| Error::WrongDevice { kernel, operand };
        let align = u64::from(self.inner.caps.limits.min_storage_buffer_offset_alignment.max(4));
        // without an allocation: most launches find their bind group
        let mut bound = [None; MAX_BINDINGS];
        let mut key = [0; 1 + 3 * MAX_BINDINGS];
        let mut offsets = [0u32; MAX_BINDINGS];
        let (id, keys) = key.split_at_mut(1);
        id[0] = self.id;
        let bindings = bound.iter_mut().zip(keys.chunks_exact_mut(3)).zip(&mut offsets);
        for ((place, &writes), ((bound, key), offset)) in
            self.places.iter().zip(&self.kernel.writes).zip(bindings)
        {
            let (buffer, at, bytes) = match place {
                Place::Operand(index) => (operands[*index], 0, operands[*index].bytes()),
                Place::Part(index, at, bytes) => (operands[*index], *at, *bytes),
                Place::Scratch(at, bytes) => (scratch.ok_or(wrong("scratch"))?, *at, *bytes),
                Place::Table(buffer) => (buffer, 0, buffer.bytes()),
            };
            if bytes == 0 {
                let nothing = &self.inner.nothing[usize::from(writes)];
                *bound = Some((nothing, 0, nothing.size()));
                continue;
            }
            let memory = stream.touch(buffer).map_err(|()| wrong("an operand"))?;
            let begin = buffer.offset() + at;
            let first = begin / align * align;
            // an array of vectors is bound with one element at least
            let end = (begin + bytes).next_multiple_of(16).min(memory.buffer().size());
            *offset = (begin - first) as u32;
            key.copy_from_slice(&[buffer.address() - buffer.offset(), begin, end]);
            *bound = Some((memory.buffer(), first, end - first));
        }
        let key = &key[..1 + 3 * self.places.len().min(MAX_BINDINGS)];
        let owners = [self.id].into_iter().chain(key[1..].iter().copied().step_by(3));
        let made = self.kernel.ready(&self.inner)?;
        let group = self.inner.groups.get(key, owners, || self.bind(made, &bound, &offsets));
        let group = group.map_err(|error| Error::Fault { kernel, detail: error.to_string() })?;
        stream.dispatch(Dispatch { pipeline: made.pipeline.clone(), group, grid: self.dims.0 });
        Ok(())
    }

    fn bind(
        &self,
        made: &Pipeline,
        bound: &[Option<(&wgpu::Buffer, u64, u64)>; MAX_BINDINGS],
        offsets: &[u32; MAX_BINDINGS],
    ) -> Result<wgpu::BindGroup, wgpu::Error> {
        let inner = &self.inner;
        let table = match offsets.iter().all(|&offset| offset == 0) {
            true => inner.no_offsets.clone(),
            false => inner.uniform("offsets", bytemuck::cast_slice::<u32, u8>(&offsets[..OFFSETS_BYTES / 4])),
        };
        let mut entries: Vec<_> = bound
            .iter()
            .flatten()
            .map(|&(buffer, offset, size)| {
                wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset,
                    size: size.try_into().ok(),
                })
            })
            .collect();
        entries.extend([self.params.as_entire_binding(), table.as_entire_binding()]);
        let entries: Vec<_> = entries
            .into_iter()
            .enumerate()
            .map(|(index, resource)| wgpu::BindGroupEntry { binding: index as u32, resource })
            .collect();
        let desc = wgpu::BindGroupDescriptor { label: None, layout: &made.layout, entries: &entries };
        inner.checked(|| inner.device.create_bind_group(&desc))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.inner.groups.forget(self.id);
    }
}

/// What a row is made of while it is prepared.
pub(crate) struct Builder<'a> {
    inner: Arc<Inner>,
    kernel: &'static str,
    request: &'a Request<'a>,
    steps: Vec<Step>,
    scratch: u64,
}

impl<'a> Builder<'a> {
    /// For a request to a device of this backend. `kernel` labels pipelines and faults.
    pub(crate) fn new(request: &'a Request<'a>, kernel: &'static str) -> Result<Self> {
        let device: &dyn Any = request.device;
        let device = device.downcast_ref::<WebGpuDevice>();
        let inner = device.map(|device| device.inner().clone()).ok_or_else(|| Error::Unsupported {
            what: "this device",
            why: "the row runs on devices of the WebGPU backend alone".into(),
        })?;
        if !computes(&inner.caps.limits) {
            return Err(Error::Unsupported {
                what: "this device",
                why: "its workgroups are too small".into(),
            });
        }
        Ok(Builder { inner, kernel, request, steps: Vec::new(), scratch: 0 })
    }

    /// Takes so many bytes of scratch. Gives where they begin.
    pub(crate) fn scratch(&mut self, bytes: u64) -> u64 {
        let at = self.scratch;
        self.scratch += bytes.next_multiple_of(256);
        at
    }

    /// Most operands, scratch and tables that a kernel binds.
    pub(crate) fn most_bindings(&self) -> usize {
        (self.inner.caps.limits.max_storage_buffers_per_shader_stage as usize).min(MAX_BINDINGS)
    }

    /// A table of constants in the device's memory.
    pub(crate) fn table<T: NoUninit>(&self, values: &[T]) -> Result<Buffer> {
        self.inner.table(bytemuck::cast_slice(values))
    }

    /// Adds a kernel of a source: its variant's bindings are bound to `places`, one for each that the op has.
    pub(crate) fn step<P: NoUninit>(
        &mut self,
        (source, headers, entry): (&'static Source, &[&'static Source], &'static str),
        (variant, checks): (&Variant, Checks),
        dims: Dims,
        params: &P,
        places: Vec<Place>,
    ) -> Result<()> {
        let bound = variant.bound().count();
        debug_assert_eq!(bound, places.len(), "{}", source.path);
        let most = self.most_bindings();
        if bound > most {
            return Err(Error::Unsupported {
                what: "an op of this form",
                why: format!("it takes {bound} operands, and a kernel of this device binds {most}"),
            });
        }
        self.keep_apart(variant, &places)?;
        let shader = Shader { source, headers, entry, variant, checks };
        let compiled = self.inner.pipelines.get(&self.inner, self.kernel, &shader);
        let step = Step::new(&self.inner, compiled, dims, bytemuck::bytes_of(params), places);
        self.steps.push(step);
        Ok(())
    }

    /// A dispatch binds a buffer to be read or to be written. Operands that the op writes may share one, as the parts of the scratch do: none
    /// of them may be bound to be read where another is written. Bound to be written, it can be read all the same.
    fn keep_apart(&self, variant: &Variant, places: &[Place]) -> Result<()> {
        let operands = self.request.op.operands();
        let group = |place: &Place| match place {
            Place::Operand(index) | Place::Part(index, ..) => {
                operands.get(*index).filter(|operand| operand.access.writes()).map(|_| "operands")
            }
            Place::Scratch(..) => Some("scratch"),
            Place::Table(_) => None,
        };
        let bound: Vec<_> =
            variant.bound().zip(places).map(|(b, place)| (group(place), b.is_written())).collect();
        let clash = |kind| {
            let of = |written| bound.contains(&(Some(kind), written));
            of(true) && of(false)
        };
        match ["operands", "scratch"].into_iter().find(|kind| clash(kind)) {
            None => Ok(()),
            Some(kind) => Err(Error::Unsupported {
                what: "this kernel",
                why: format!(
                    "{} reads and writes {kind} that may share a buffer, by different bindings",
                    self.kernel
                ),
            }),
        }
    }

    /// The launchable form: the steps, one after the other.
    pub(crate) fn finish(self) -> Box<dyn Launch> {
        Box::new(Steps { steps: self.steps, scratch: self.scratch })
    }
}

struct Steps {
    steps: Vec<Step>,
    scratch: u64,
}

impl Launch for Steps {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn launch(&self, stream: &mut dyn Stream, mut checked: Checked<'_, '_>) -> Result<()> {
        let kernel = checked.kernel().name;
        let wrong = |operand| Error::WrongDevice { kernel, operand };
        let stream: &mut dyn Any = stream;
        let stream = stream.downcast_mut::<WebGpuStream>().ok_or(wrong("stream"))?;
        stream.begin(kernel)?;
        let scratch = checked.scratch().cloned();
        let names = checked.operands();
        // no more than the operands of the op: a caller's buffers may be larger
        let mut views = Vec::with_capacity(MAX_OPERANDS);
        for (arg, operand) in checked.args().iter().zip(names) {
            let Arg::Buf(buffer) = arg else { return Err(wrong(operand.name)) };
            memory_of(buffer).ok_or(wrong(operand.name))?;
            views.push(buffer.view(0, operand.bytes)?);
        }
        let operands: Vec<&Buffer> = views.iter().collect();
        self.steps.iter().try_for_each(|step| step.start(stream, kernel, &operands, scratch.as_ref()))
    }
}

/// The error of a body that was asked for another op.
pub(crate) fn other_op(op: &Op) -> Error {
    Error::Unsupported { what: "this op", why: format!("{} is not the row's", op.name()) }
}
