//! Copies that WebGPU's own do not do: of single bytes, and between devices.

use crate::inner::Inner;
use crate::launch::{Builder, Dims, Place, Step};
use crate::pipeline::{Checks, Shader};
use crate::shader::{Binding, Variant};
use crate::stream::WebGpuStream;
use crate::wait::{Later, Signal};
use bytemuck::{Pod, Zeroable};
#[cfg(not(target_arch = "wasm32"))]
use perjoule_kernels::Stream;
use perjoule_kernels::{Buffer, Error, Pending, Result};
use perjoule_shaders::{Source, wgsl};
use std::sync::Arc;

/// `Params` of `copy/bytes.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    bytes: u32,
    unused: [u32; 3],
}

/// Most bytes that one kernel copies: bindings are limited, and its addresses have 32 bits.
const PIECE: u64 = 64 << 20;

const HEADERS: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT];

/// The kernel finds bytes in words: its operands begin anywhere.
fn variant() -> Variant {
    Variant::of(vec![Binding::words("source", "u32"), Binding::words_mut("target", "u32")])
}

/// Adds the copy of an op's first operand, so many bytes, to its second one.
pub(crate) fn steps(builder: &mut Builder<'_>, bytes: u64) -> Result<()> {
    let variant = variant();
    let mut at = 0;
    while at < bytes {
        let piece = PIECE.min(bytes - at);
        let params = Params { bytes: piece as u32, unused: [0; 3] };
        let dims = Dims::line(piece.div_ceil(4) + 1, 256)?;
        let places = vec![Place::Part(0, at, piece), Place::Part(1, at, piece)];
        let program = (&wgsl::COPY_BYTES, HEADERS, "copy");
        builder.step(program, (&variant, Checks::None), dims, &params, places)?;
        at += piece;
    }
    Ok(())
}

/// Copies `from` to `to`, which lie in different blocks of memory of the stream's device.
pub(crate) fn bytes(stream: &mut WebGpuStream, to: &Buffer, from: &Buffer) -> Result<()> {
    const NAME: &str = "copy";
    let inner = stream.inner().clone();
    let variant = variant();
    let shader = Shader {
        source: &wgsl::COPY_BYTES,
        headers: HEADERS,
        entry: "copy",
        variant: &variant,
        checks: Checks::None,
    };
    let kernel = inner.pipelines.get(&inner, NAME, &shader);
    let bytes = from.bytes();
    let mut at = 0;
    while at < bytes {
        let piece = PIECE.min(bytes - at);
        let (source, target) = (from.view(at, piece)?, to.view(at, piece)?);
        let params = Params { bytes: piece as u32, unused: [0; 3] };
        let dims = Dims::line(piece.div_ceil(4) + 1, 256)?;
        let places = vec![Place::Operand(0), Place::Operand(1)];
        let step = Step::new(&inner, kernel.clone(), dims, bytemuck::bytes_of(&params), places);
        step.start(stream, NAME, &[&source, &target], None)?;
        at += piece;
    }
    Ok(())
}

/// Copies between two devices, by way of the host.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn across(stream: &mut WebGpuStream, to: &Buffer, from: &Buffer) -> Result<()> {
    let other = |buffer: &Buffer| crate::memory::memory_of(buffer).map(|memory| memory.inner().clone());
    let wrong = Error::WrongDevice { kernel: "copy", operand: "buffer" };
    let home = stream.inner().clone();
    match to.device() == home.id {
        true => {
            let mut source = WebGpuStream::new(other(from).ok_or(wrong)?);
            let bytes = source.read(from).wait()?;
            stream.write(to, &bytes)
        }
        false => {
            let mut target = WebGpuStream::new(other(to).ok_or(wrong)?);
            let bytes = stream.read(from).wait()?;
            target.write(to, &bytes)?;
            target.sync().wait()
        }
    }
}

/// A browser waits for nothing within a call.
#[cfg(target_arch = "wasm32")]
pub(crate) fn across(_: &mut WebGpuStream, _: &Buffer, _: &Buffer) -> Result<()> {
    Err(Error::Unsupported {
        what: "a copy between devices",
        why: "a browser cannot wait for it; read and write".into(),
    })
}

/// Waits for all that was submitted to another device.
pub(crate) fn finish(inner: &Arc<Inner>) -> Result<()> {
    let done: Pending<()> = Later::pending(
        inner,
        "an event of another device",
        vec![Signal::submitted(&inner.queue, None)],
        || Ok(()),
    );
    #[cfg(not(target_arch = "wasm32"))]
    return done.wait();
    #[cfg(target_arch = "wasm32")]
    {
        drop(done);
        Err(Error::Unsupported {
            what: "waiting for another device",
            why: "a browser cannot within a call".into(),
        })
    }
}
