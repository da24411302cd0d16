//! What the body of a CPU row is: one function that every lane of the team runs over the same checked arguments.

use crate::device::lanes;
use crate::stream::{CpuStream, bytes_of};
use crate::team::{Lane, TeamId};
use bytemuck::Pod;
use perjoule_kernels::op::MAX_OPERANDS;
use perjoule_kernels::{Arg, Buffer, Checked, DeviceId, Error, Launch, Request, Result, Stream};
use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The body of a row, prepared for one op. Wrap it with [`launch`] to get what a row's `prepare` returns.
pub trait Spmd: Send + Sync + 'static {
    /// Bytes of scratch, 64-byte aligned, that all lanes share.
    fn scratch(&self) -> u64 {
        0
    }

    /// Whether one lane runs it by itself while the others sleep: code that brings threads of its own.
    fn alone(&self) -> bool {
        false
    }

    /// Whether it is over before other lanes would have come, so that a launch by itself is one lane's. In a recording, whose lanes are
    /// awake, all of them run it.
    fn short(&self) -> bool {
        false
    }

    /// Whether lanes that are awake make even a short body quicker: it has no barrier, and microseconds of work.
    fn divides(&self) -> bool {
        false
    }

    /// Runs this lane's part. All lanes make the same calls of [`Lane::barrier`]. Work is divided with [`Args::split_out`] or
    /// [`Lane::split`], or claimed with [`Lane::claim`]; nothing is allocated. It must not launch, read or write by streams of its
    /// device: see [`Team::lock`](crate::team::Team::lock).
    fn run(&self, lane: &Lane<'_>, args: &Args);
}

#[derive(Clone, Copy)]
struct Raw {
    pointer: *mut u8,
    bytes: usize,
    writes: bool,
}

const NOTHING: Raw = Raw { pointer: std::ptr::null_mut(), bytes: 0, writes: false };

/// The arguments of a launch as its lanes see them, in the order of the op's operands. They have been checked: sizes, alignment, and
/// that no written operand overlaps another.
pub struct Args {
    list: [Raw; MAX_OPERANDS],
    count: usize,
    scratch: Raw,
    /// The team whose lanes share them.
    team: TeamId,
    /// Bytes in whole multiples of which lanes share an operand; 0 until the first of them asks.
    granules: [AtomicUsize; MAX_OPERANDS],
}

// SAFETY: the pointers are valid and unaliased for the whole launch: buffers by the exclusive use of the device, host slices by the
// borrows in the caller's `Arg`s. Writing through them needs `Out::slice`, whose contract is disjointness.
unsafe impl Sync for Args {}
// SAFETY: as above.
unsafe impl Send for Args {}

impl Args {
    /// Operand `index`, which the op only reads.
    ///
    /// # Panics
    /// When the op writes that operand, or it is not aligned for `T`: an error in the row, reported as a fault.
    pub fn read<T: Pod>(&self, index: usize) -> &[T] {
        let raw = self.raw(index);
        assert!(!raw.writes, "operand {index} is written; use Args::out");
        let len = elements::<T>(raw);
        // SAFETY: checked to be this large and aligned; nothing writes it during the launch, since no written operand overlaps it.
        unsafe { std::slice::from_raw_parts(raw.pointer.cast::<T>(), len) }
    }

    /// This lane's share of operand `index`, which the op writes, and where it lies in it: contiguous, in whole multiples of `granule`
    /// elements (but for the end), as [`Lane::split`] divides. It holds what the operand held before the launch.
    ///
    /// ```
    /// # use perjoule_cpu::{spmd::Args, team::Lane};
    /// # fn twice(lane: &Lane<'_>, args: &Args) {
    /// let (range, out) = args.split_out::<f32>(lane, 1, 16);
    /// for (out, x) in out.iter_mut().zip(&args.read::<f32>(0)[range]) {
    ///     *out = 2.0 * x;
    /// }
    /// # }
    /// ```
    ///
    /// # Panics
    /// When the op only reads that operand, when the lane has taken its share in this body already, and when lanes ask for different
    /// granules: errors in the row, reported as a fault.
    #[allow(clippy::mut_from_ref, reason = "shares are disjoint, and each is lent once")]
    pub fn split_out<T: Pod>(
        &self,
        lane: &Lane<'_>,
        index: usize,
        granule: usize,
    ) -> (Range<usize>, &mut [T]) {
        let out = self.out::<T>(index);
        assert!(lane.is_of(self.team), "the lane is of another team");
        let bytes = granule.max(1).saturating_mul(size_of::<T>());
        let others = self.granules[index].compare_exchange(0, bytes, Ordering::Relaxed, Ordering::Relaxed);
        assert!(others.is_ok() || others == Err(bytes), "lanes share operand {index} in different granules");
        assert!(lane.lend(index), "the lane's share of operand {index} is taken already");
        // in bytes: of an operand that is no whole number of elements, lanes that say different `T` would count different granules
        let share = lane.split(self.raw(index).bytes, bytes);
        // a share begins at a granule, a whole number of elements, or is empty; behind its last one may be bytes too few for another
        let range = share.start / size_of::<T>()..share.end / size_of::<T>();
        // SAFETY: a share in bytes is a function of the operand's bytes, the granule's bytes, and the lane. The first two are the same
        // for all lanes, whatever `T` they say, so shares of different lanes are disjoint; the slice begins where the share does, unless
        // it is empty, and ends no later. Of the launch's team every lane exists once, on one thread, and takes its share once in a
        // body, within which the slice ends, being borrowed from `self`. Whoever makes other slices of the operand answers for those:
        // `Out::slice` and `Out::shared` are unsafe.
        let share = unsafe { out.slice(range.clone()) };
        (range, share)
    }

    /// Operand `index`, which the op writes.
    ///
    /// # Panics
    /// When the op only reads that operand.
    pub fn out<T: Pod>(&self, index: usize) -> Out<'_, T> {
        let raw = self.raw(index);
        assert!(raw.writes, "operand {index} is only read; use Args::read");
        Out { pointer: raw.pointer.cast(), len: elements::<T>(raw), life: PhantomData }
    }

    /// The scratch, as `T`.
    pub fn scratch<T: Pod>(&self) -> Out<'_, T> {
        let raw = self.scratch;
        if raw.bytes == 0 {
            return Out { pointer: std::ptr::NonNull::dangling().as_ptr(), len: 0, life: PhantomData };
        }
        Out { pointer: raw.pointer.cast(), len: elements::<T>(raw), life: PhantomData }
    }

    /// Number of operands.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn raw(&self, index: usize) -> Raw {
        assert!(index < self.count, "operand {index} of {}", self.count);
        self.list[index]
    }
}

fn elements<T>(raw: Raw) -> usize {
    assert_eq!(raw.pointer as usize % align_of::<T>(), 0, "an operand is not aligned for its type");
    raw.bytes / size_of::<T>()
}

/// Memory that the lanes of a launch write together.
pub struct Out<'a, T> {
    pointer: *mut T,
    len: usize,
    life: PhantomData<&'a T>,
}

impl<T> Clone for Out<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<'_, T> {}

// SAFETY: a handle; access through it is what `slice` makes a contract of.
unsafe impl<T: Send> Send for Out<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Out<'_, T> {}

impl<'a, T: Pod> Out<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it to write.
    ///
    /// # Safety
    /// Until the next barrier no other slice, of this or any other lane, overlaps it while it is alive.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.len()) }
    }

    /// A part of it to read.
    ///
    /// # Safety
    /// No lane writes it while the slice is alive; what was written before is visible after a barrier.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub unsafe fn shared(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; not written meanwhile by the contract.
        unsafe { std::slice::from_raw_parts(self.pointer.add(range.start), range.len()) }
    }

    /// First element, for SIMD code that computes its own addresses.
    pub fn pointer(&self) -> *mut T {
        self.pointer
    }
}

/// Makes the launchable form of a body, which is what a CPU row's `prepare` returns. It runs on teams with as many lanes as `request`
/// speaks of, and is refused on others: a body may size by that number what each lane has of its own.
pub fn launch(request: &Request<'_>, body: impl Spmd) -> Box<dyn Launch> {
    Box::new(CpuLaunch { body: Arc::new(body), lanes: lanes(request.info) })
}

struct CpuLaunch {
    body: Arc<dyn Spmd>,
    /// Lanes that it was prepared for. Anyone can write a [`perjoule_kernels::Device`] that bears this device's id and speaks of others.
    lanes: usize,
}

impl Launch for CpuLaunch {
    fn scratch(&self) -> u64 {
        self.body.scratch()
    }

    fn launch(&self, stream: &mut dyn Stream, mut checked: Checked<'_, '_>) -> Result<()> {
        let kernel = checked.kernel().name;
        let stream: &mut dyn Any = stream;
        let stream =
            stream.downcast_mut::<CpuStream>().ok_or(Error::WrongDevice { kernel, operand: "stream" })?;
        let team = stream.lanes();
        if self.lanes != team {
            return Err(Error::Lanes { kernel, prepared: self.lanes, team });
        }
        let operands = checked.operands();
        // the lock of this stream's team guards the memory of its device alone
        let device = stream.device();
        let scratch = match checked.scratch() {
            Some(buffer) => {
                raw_buffer(buffer, device, true).ok_or(Error::WrongDevice { kernel, operand: "scratch" })?
            }
            None => NOTHING,
        };
        let mut args = Args {
            list: [NOTHING; MAX_OPERANDS],
            count: operands.len(),
            scratch,
            team: stream.team(),
            granules: [const { AtomicUsize::new(0) }; MAX_OPERANDS],
        };
        if operands.len() > MAX_OPERANDS {
            return Err(Error::Unsupported {
                what: "an op with that many operands",
                why: format!("{} are the most on the CPU", MAX_OPERANDS),
            });
        }
        for ((raw, operand), arg) in args.list.iter_mut().zip(operands).zip(checked.args().iter_mut()) {
            let wrong = Error::WrongDevice { kernel, operand: operand.name };
            let writes = operand.access.writes();
            *raw = match arg {
                Arg::Buf(buffer) => raw_buffer(buffer, device, writes).ok_or(wrong)?,
                Arg::Host(_) if writes => return Err(wrong),
                Arg::Host(slice) => Raw { pointer: slice.as_ptr().cast_mut(), bytes: slice.len(), writes },
                Arg::HostMut(slice) => Raw { pointer: slice.as_mut_ptr(), bytes: slice.len(), writes },
            };
            // a row sees what the op touches, not what lies behind it
            raw.bytes = raw.bytes.min(operand.bytes as usize);
            if raw.bytes == 0 {
                raw.pointer = std::ptr::NonNull::<Line>::dangling().as_ptr().cast();
            }
        }
        if stream.is_capturing() {
            let mut keep: Vec<Buffer> = checked.scratch().cloned().into_iter().collect();
            for (arg, operand) in checked.args().iter().zip(operands) {
                match arg {
                    Arg::Buf(buffer) => keep.push((*buffer).clone()),
                    Arg::Host(_) | Arg::HostMut(_) => {
                        return Err(Error::HostArgument {
                            kernel,
                            operand: operand.name,
                            why: "a recorded launch outlives the slice; use a buffer",
                        });
                    }
                }
            }
            stream.record_launch(Recorded { kernel, body: self.body.clone(), args, _keep: keep });
            return Ok(());
        }
        stream.run(kernel, &*self.body, &args)
    }
}

#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "only its alignment is used")] u8);

fn raw_buffer(buffer: &Buffer, device: DeviceId, writes: bool) -> Option<Raw> {
    if buffer.device() != device {
        return None;
    }
    let (_, pointer, bytes) = bytes_of(buffer)?;
    Some(Raw { pointer, bytes, writes })
}

/// A launch kept for replay.
pub(crate) struct Recorded {
    pub(crate) kernel: &'static str,
    pub(crate) body: Arc<dyn Spmd>,
    pub(crate) args: Args,
    /// What the pointers in `args` point into.
    pub(crate) _keep: Vec<Buffer>,
}
