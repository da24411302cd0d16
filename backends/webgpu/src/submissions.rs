//! Submissions to a device's queue. They are waited for where the host is too far ahead: `wgpu` keeps a copy of every upload until it is
//! submitted and done, and command buffers until they are.

use crate::inner::{Inner, locked};
use perjoule_kernels::{Error, Result};
use std::collections::VecDeque;
use std::sync::Mutex;

/// Most bytes that one upload copies, and that wait to be submitted.
const PIECE: usize = 64 << 20;

/// Most bytes of uploads that are submitted and may not be done.
#[cfg(not(target_arch = "wasm32"))]
const IN_FLIGHT: u64 = 256 << 20;

/// A device that answers nothing for so long is taken for lost.
#[cfg(not(target_arch = "wasm32"))]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// Bytes of uploads that `wgpu` holds copies of.
#[derive(Default)]
pub(crate) struct Staged(Mutex<Uploads>);

#[derive(Default)]
struct Uploads {
    /// Not submitted yet.
    waiting: u64,
    /// What was submitted and may not be done, the oldest first.
    flying: VecDeque<(wgpu::SubmissionIndex, u64)>,
}

impl Inner {
    /// Submits commands, if there are any, behind all that was uploaded.
    pub(crate) fn submit(
        &self,
        commands: Option<wgpu::CommandEncoder>,
    ) -> Result<wgpu::SubmissionIndex, wgpu::Error> {
        let uploaded = std::mem::take(&mut locked(&self.staged.0).waiting);
        let submitted = self.checked(|| self.queue.submit(commands.map(wgpu::CommandEncoder::finish)));
        if uploaded > 0 {
            let mut uploads = locked(&self.staged.0);
            match &submitted {
                Ok(submission) => uploads.flying.push_back((submission.clone(), uploaded)),
                Err(_) => uploads.waiting += uploaded,
            }
        }
        submitted
    }

    /// Copies bytes into a buffer, ahead of what is submitted next and behind what was. Offset and size are whole words.
    pub(crate) fn upload(&self, to: &wgpu::Buffer, at: u64, bytes: &[u8]) -> Result<()> {
        let refused = |error: wgpu::Error| Error::Fault { kernel: "write", detail: error.to_string() };
        for (i, piece) in bytes.chunks(PIECE).enumerate() {
            let at = at + (i * PIECE) as u64;
            self.checked(|| self.queue.write_buffer(to, at, piece)).map_err(refused)?;
            // a device that has no memory for the copy is lost
            self.alive()?;
            let waiting = {
                let mut uploads = locked(&self.staged.0);
                uploads.waiting += piece.len() as u64;
                uploads.waiting
            };
            if waiting >= PIECE as u64 {
                self.submit(None).map_err(refused)?;
                #[cfg(not(target_arch = "wasm32"))]
                self.keep_up()?;
            }
        }
        Ok(())
    }

    /// Waits for the oldest uploads, while too much of them is on its way.
    #[cfg(not(target_arch = "wasm32"))]
    fn keep_up(&self) -> Result<()> {
        loop {
            let oldest = {
                let mut uploads = locked(&self.staged.0);
                let flying: u64 = uploads.flying.iter().map(|(_, bytes)| bytes).sum();
                uploads.flying.pop_front_if(|_| flying > IN_FLIGHT)
            };
            match oldest {
                None => return Ok(()),
                Some((submission, _)) => self.finished(&submission)?,
            }
        }
    }

    /// Waits for a submission.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn finished(&self, submission: &wgpu::SubmissionIndex) -> Result<()> {
        let start = std::time::Instant::now();
        while self.poll(Some(submission.clone()), start)?.is_none() {}
        Ok(())
    }

    /// Lets callbacks come, and waits for a submission, or for all of them; `None` where that takes longer than some seconds. Somebody
    /// has been waiting since `start`.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn poll(
        &self,
        submission_index: Option<wgpu::SubmissionIndex>,
        start: std::time::Instant,
    ) -> Result<Option<wgpu::PollStatus>> {
        self.alive()?;
        let timeout = Some(std::time::Duration::from_secs(5));
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index, timeout });
        // where a driver has lost its device, `wgpu` panics, and where another thread finds all work done in the moment between a time
        // that ran out and its own look (gfx-rs/wgpu#9958, mended behind version 30.0.2)
        match crate::faults::caught(poll) {
            Ok(Ok(status)) => Ok(Some(status)),
            Ok(Err(wgpu::PollError::Timeout)) if start.elapsed() < PATIENCE => Ok(None),
            Ok(Err(wgpu::PollError::Timeout)) => {
                Err(self.give_up(format!("no answer for {} seconds", PATIENCE.as_secs())))
            }
            // a submission that never was: the device refused it
            Ok(Err(error)) => Err(self.give_up(error.to_string())),
            Err(said) => match crate::faults::caught(|| self.device.poll(wgpu::PollType::Poll)) {
                Ok(Ok(_)) => Ok(None),
                _ => Err(self.give_up(said)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WebGpuDevice;
    use perjoule_kernels::Device;

    #[test]
    fn uploads_do_not_pile_up() {
        let Ok(device) = WebGpuDevice::open(0) else { return eprintln!("ignored: no adapter") };
        let (inner, piece) = (device.inner(), vec![7; 24 << 20]);
        let (mut stream, buffer) = (device.stream().unwrap(), device.alloc(piece.len() as u64).unwrap());
        for _ in 0..25 {
            stream.write(&buffer, &piece).unwrap();
            let uploads = locked(&inner.staged.0);
            assert!(uploads.waiting < PIECE as u64, "{}", uploads.waiting);
            let flying: u64 = uploads.flying.iter().map(|(_, bytes)| bytes).sum();
            assert!(flying <= IN_FLIGHT, "{flying}");
        }
        assert!(!locked(&inner.staged.0).flying.is_empty(), "they were submitted");
        assert_eq!(stream.read(&buffer).wait().unwrap(), piece);
    }
}
