//! Where the arguments of a launch live, and how writes outside of them are noticed.

use perjoule_kernels::{Device, Error, Prepared, Stream};
// where waiting is possible within a call
#[cfg(not(target_arch = "wasm32"))]
use perjoule_kernels::{Access, Arg, Buffer};

/// What went wrong in a launch, before any number was looked at.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The launch or a transfer failed.
    Failed(Error),
    /// Memory around the arguments was touched, or a recorded launch ran too early.
    Violation(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Failed(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Failed(error) => error.fmt(f),
            Trouble::Violation(text) => f.write_str(text),
        }
    }
}

/// Puts the operands of a launch somewhere, launches, and brings back what they hold.
pub trait Place {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// Launches `prepared` once on copies of `contents` (one for each operand, at least as long as it) and stores there what the
    /// operands hold afterwards.
    ///
    /// # Errors
    /// When the launch fails, or when memory outside the operands was written.
    fn launch(
        &self,
        device: &dyn Device,
        stream: &mut dyn Stream,
        prepared: &Prepared,
        contents: &mut [Vec<u8>],
    ) -> Result<(), Trouble>;
}

/// Device buffers between guard bands: works on every device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buffers {
    /// Whether the launch is recorded and then replayed instead.
    pub replay: bool,
}

/// Bytes of the bands: a multiple of what any backend wants of an offset, and wider than a cache line.
#[cfg(not(target_arch = "wasm32"))]
const BAND: usize = 256;
/// What the bands hold.
#[cfg(not(target_arch = "wasm32"))]
const GUARD: u8 = 0xa5;

#[cfg(not(target_arch = "wasm32"))]
impl Place for Buffers {
    fn name(&self) -> &'static str {
        if self.replay { "replayed" } else { "buffers" }
    }

    fn launch(
        &self,
        device: &dyn Device,
        stream: &mut dyn Stream,
        prepared: &Prepared,
        contents: &mut [Vec<u8>],
    ) -> Result<(), Trouble> {
        let operands = prepared.operands();
        let mut whole = Vec::with_capacity(contents.len());
        let mut inner = Vec::with_capacity(contents.len());
        for content in contents.iter() {
            let buffer = device.alloc((content.len().next_multiple_of(4) + 2 * BAND) as u64)?;
            let mut bytes = vec![GUARD; buffer.bytes() as usize];
            bytes[BAND..BAND + content.len()].copy_from_slice(content);
            stream.write(&buffer, &bytes)?;
            inner.push(buffer.view(BAND as u64, content.len() as u64)?);
            whole.push(buffer);
        }
        stream.reserve(prepared.scratch())?;
        let mut args: Vec<Arg<'_>> = inner.iter().map(Arg::Buf).collect();
        if self.replay {
            let graph = stream.capture(&mut |stream| prepared.launch(stream, &mut args))?;
            stream.sync().wait()?;
            for ((buffer, operand), content) in inner.iter().zip(operands).zip(contents.iter()) {
                if operand.access != Access::Read && stream.read(buffer).wait()? != *content {
                    let text = format!("{} was written while the launch was recorded", operand.name);
                    return Err(Trouble::Violation(text));
                }
            }
            stream.replay(&graph)?;
        } else {
            prepared.launch(stream, &mut args)?;
        }
        stream.sync().wait()?;
        for ((buffer, operand), content) in whole.iter().zip(operands).zip(contents.iter_mut()) {
            let bytes = read(stream, buffer)?;
            let (before, rest) = bytes.split_at(BAND);
            let (inside, after) = rest.split_at(content.len());
            for (band, side, from_end) in [(before, "in front of", true), (after, "behind", false)] {
                if let Some(at) = band.iter().position(|&byte| byte != GUARD) {
                    let distance = if from_end { BAND - at } else { at + 1 };
                    let text = format!("byte {distance} {side} {} was written", operand.name);
                    return Err(Trouble::Violation(text));
                }
            }
            content.copy_from_slice(inside);
        }
        Ok(())
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn read(stream: &mut dyn Stream, buffer: &Buffer) -> Result<Vec<u8>, Error> {
    stream.read(buffer).wait()
}
