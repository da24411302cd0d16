//! What a stream has collected and not submitted: dispatches in one compute pass, and copies between passes.

use crate::clock::Clock;
use crate::faults::Untold;
use crate::inner::Inner;
use std::collections::VecDeque;
use std::sync::Arc;

/// Dispatches after which a stream submits what it has collected, so that the device works while the host goes on.
const BATCH: usize = 128;

/// Submissions of a stream that the device may not have done. The host waits where there are more: each holds what it was made of.
const AHEAD: usize = 8;

/// One kernel's start.
#[derive(Clone)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) group: wgpu::BindGroup,
    pub(crate) grid: [u32; 3],
}

/// The work of one stream. Events share it, and submit what they are a part of.
pub(crate) struct Work {
    open: Option<Open>,
    /// The last submissions, the oldest first.
    ahead: VecDeque<wgpu::SubmissionIndex>,
    /// The kernel that was launched last, for the reports of faults.
    pub(crate) last: &'static str,
    pub(crate) untold: Arc<Untold>,
}

struct Open {
    // ended before the encoder is finished
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
    dispatches: usize,
    /// Slots of the device's clock that were written, and who reads them.
    stamps: Vec<(u32, Arc<Clock>)>,
}

impl Default for Work {
    fn default() -> Self {
        Work { open: None, ahead: VecDeque::new(), last: "nothing", untold: Arc::default() }
    }
}

impl Work {
    fn open(&mut self, inner: &Inner) -> &mut Open {
        self.open.get_or_insert_with(|| Open {
            pass: None,
            encoder: inner.device.create_command_encoder(&Default::default()),
            dispatches: 0,
            stamps: Vec::new(),
        })
    }

    /// Whether nothing is collected.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_none()
    }

    /// Adds a kernel.
    pub(crate) fn encode(&mut self, inner: &Inner, dispatch: &Dispatch) {
        let open = self.open(inner);
        let encoder = &mut open.encoder;
        let pass = open
            .pass
            .get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        pass.set_pipeline(&dispatch.pipeline);
        pass.set_bind_group(0, &dispatch.group, &[]);
        let [x, y, z] = dispatch.grid;
        pass.dispatch_workgroups(x, y, z);
        open.dispatches += 1;
    }

    /// Submits what was collected, where that is enough to keep the device busy.
    pub(crate) fn submit_batch(&mut self, inner: &Inner) {
        if self.open.as_ref().is_some_and(|open| open.dispatches >= BATCH) {
            self.submit(inner);
        }
    }

    /// The encoder, outside of passes: for copies.
    pub(crate) fn encoder(&mut self, inner: &Inner) -> &mut wgpu::CommandEncoder {
        let open = self.open(inner);
        open.pass = None;
        &mut open.encoder
    }

    /// Lets the device leave the time, behind all that was collected, for that clock. Without one, or a free slot, it stays unknown.
    pub(crate) fn stamp(&mut self, inner: &Inner, clock: &Arc<Clock>) {
        let Some(stamps) = &inner.stamps else { return };
        if let Some(slot) = stamps.write(self.encoder(inner)) {
            self.open(inner).stamps.push((slot, clock.clone()));
        }
    }

    /// Submits what was collected. Gives the last submission, of now or before.
    pub(crate) fn submit(&mut self, inner: &Inner) -> Option<wgpu::SubmissionIndex> {
        let Some(Open { pass, mut encoder, stamps, .. }) = self.open.take() else {
            return self.ahead.back().cloned();
        };
        drop(pass);
        // behind the work that is timed, since it takes time itself
        let landings = inner.stamps.as_ref().map(|clock| clock.resolve(inner, &mut encoder, stamps));
        match inner.submit(Some(encoder)) {
            Ok(submission) => {
                for (clock, landing) in landings.into_iter().flatten() {
                    clock.arrives(landing, submission.clone());
                }
                self.ahead.push_back(submission);
                self.keep_up(inner);
            }
            Err(error) => self.untold.keep(self.last, error.to_string()),
        }
        self.ahead.back().cloned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn keep_up(&mut self, inner: &Inner) {
        let many = self.ahead.len() > AHEAD;
        if let Some(oldest) = self.ahead.pop_front_if(|_| many) {
            // a device that is lost says so to whoever comes next
            let _ = inner.finished(&oldest);
        }
    }

    /// A browser keeps its own count.
    #[cfg(target_arch = "wasm32")]
    fn keep_up(&mut self, _: &Inner) {
        while self.ahead.len() > AHEAD {
            self.ahead.pop_front();
        }
    }
}
