//! Faults that `cargo xtask sanitize` must see before it believes that there are none: each test must end its process. They are built
//! under a sanitizer only, since without one they would damage memory in silence.

use crate::simd::{Avx2, Avx512, Kernel, Portable, Simd};
use crate::spmd::{Args, Spmd, launch};
use crate::team::Lane;
use crate::{CpuDevice, Options};
use perjoule_kernels::op::{Add, Op};
use perjoule_kernels::{Arg, Choice, DType, Device, Kernel as Row, prepare};
use std::hint::black_box;

/// A vector of ones to the first `lanes` elements, or all, at `to`.
struct Store {
    to: *mut f32,
    first: Option<usize>,
}

impl Kernel for Store {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ones = s.splat(1.0);
        // SAFETY: none; the tests below pass what is not valid.
        unsafe {
            match self.first {
                Some(lanes) => s.store_first(self.to, lanes, ones),
                None => s.store_f32(self.to, ones),
            }
        }
    }
}

/// With the widest vectors that this processor has.
fn widest(kernel: Store) {
    match (Avx512::detect(), Avx2::detect()) {
        (Some(s), _) => s.vectorise(kernel),
        (None, Some(s)) => s.vectorise(kernel),
        (None, None) => Portable.vectorise(kernel),
    }
}

/// Elements behind which one too many is written: no multiple of a vector, so that only its last lane is outside.
const LEN: usize = 31;

fn behind(array: &mut [f32], lanes: usize) -> *mut f32 {
    black_box(array.as_mut_ptr().wrapping_add(array.len() + 1 - lanes))
}

#[test]
#[ignore = "must end its process"]
fn a_lane_behind_a_vec_portable() {
    let mut panel = vec![0.0; LEN];
    let to = behind(&mut panel, 4);
    Portable.vectorise(Store { to, first: None });
}

#[test]
#[ignore = "must end its process"]
fn a_lane_behind_a_vec_in_the_widest_vectors() {
    let mut panel = vec![0.0; LEN];
    let lanes = if Avx512::detect().is_some() { 16 } else { 8 };
    let to = behind(&mut panel, lanes);
    widest(Store { to, first: None });
}

#[test]
#[ignore = "must end its process"]
fn a_lane_of_some_behind_a_vec() {
    let mut panel = vec![0.0; LEN];
    let to = behind(&mut panel, 3);
    widest(Store { to, first: Some(black_box(3)) });
}

#[test]
#[ignore = "must end its process"]
fn a_lane_behind_a_tile_on_the_stack() {
    let mut tile = [0.0f32; LEN];
    let to = behind(&mut tile, 3);
    widest(Store { to, first: Some(black_box(3)) });
    black_box(&tile);
}

#[test]
#[ignore = "must end its process"]
fn a_tile_behind_its_scope() {
    let to = {
        let mut tile = [0.0f32; LEN];
        black_box(tile.as_mut_ptr())
    };
    Portable.vectorise(Store { to, first: None });
}

/// Writes one element more than its scratch has.
struct Spills(u64);

impl Spmd for Spills {
    fn scratch(&self) -> u64 {
        self.0
    }

    fn run(&self, lane: &Lane<'_>, args: &Args) {
        let scratch = args.scratch::<f32>();
        if lane.split(1, 1).len() == 1 {
            // SAFETY: none; one element too far.
            unsafe { black_box(scratch.pointer().add(scratch.len())).write(1.0) };
        }
    }
}

fn spill(row: &'static Row) {
    let device = CpuDevice::open(&Options { threads: Some(2), ..Options::default() }).unwrap();
    let op = Op::from(Add::dense(4, 8, DType::F32));
    let prepared = prepare(&device, &op, Choice::new(row, 0, None), None).unwrap();
    let mut stream = device.stream().unwrap();
    stream.reserve(prepared.scratch()).unwrap();
    let [a, b, c] = [128, 128, 128].map(|bytes| device.alloc(bytes).unwrap());
    prepared.launch(&mut *stream, &mut [Arg::Buf(&a), Arg::Buf(&b), Arg::Buf(&c)]).unwrap();
}

#[test]
#[ignore = "must end its process"]
fn an_element_behind_a_small_scratch() {
    static ROW: Row = Row::new("small", "add", |_| 0.0, |request| Ok(launch(request, Spills(512))));
    spill(&ROW);
}

#[test]
#[ignore = "must end its process"]
fn an_element_behind_a_large_scratch() {
    static ROW: Row = Row::new("large", "add", |_| 0.0, |request| Ok(launch(request, Spills(3 << 20))));
    spill(&ROW);
}

#[test]
#[ignore = "must end its process"]
fn memory_that_was_freed() {
    let device = CpuDevice::open(&Options { threads: Some(1), ..Options::default() }).unwrap();
    let buffer = device.alloc(256).unwrap();
    let pointer = black_box(buffer.address() as *const u8);
    drop(buffer);
    // SAFETY: none; nobody holds the memory any more.
    black_box(unsafe { pointer.read() });
}

/// No sanitizer sees it, as the element is there: the standard library's own check does.
#[test]
#[ignore = "must end its process"]
fn an_unchecked_index_out_of_bounds() {
    let panel = vec![0.0f32; LEN];
    let part = &panel[..black_box(LEN - 1)];
    // SAFETY: none; that is the first element behind the slice.
    black_box(unsafe { *part.get_unchecked(black_box(LEN - 1)) });
}
