//! Models of what `shaders/cuda/matmul/hopper.cu` relies on: where copies put elements, where wgmma looks for them, how fragments reach
//! C, and the order of tiles. They check indices, not races.

use super::problem::Problem;
use super::{CONFIGS, Tile, slices};
use crate::device::CudaCaps;
use perjoule_kernels::op::{Epilogue, Granularity, MatMul, Op, Spec, Tensor2};
use perjoule_kernels::{Choice, DType, DeviceClass, DeviceInfo, Kernel, Matrix};
use std::collections::HashSet;
use std::sync::Arc;

/// Bytes of a line of shared memory, and of an atom of 8 of them.
const LINE: usize = 128;
const ATOM: usize = 8 * LINE;

/// The 128-byte swizzle on addresses: the 16-byte unit within a line is exchanged by the line's number within its atom.
fn swizzle(address: usize) -> usize {
    address ^ (address >> 7 & 7) << 4
}

/// Where a copy puts byte `byte` of line `line` of a box.
fn copied(line: usize, byte: usize) -> usize {
    line * LINE + ((byte / 16) ^ (line % 8)) * 16 + byte % 16
}

#[test]
fn wgmma_finds_lines_along_k() {
    // K-major: `stride` from 8 rows to the next 8, steps of 32 bytes within the line
    for row in 0..256 {
        for byte in 0..LINE {
            let (step, within) = (byte / 32, byte % 32);
            let block = row / 64 * 64 * LINE;
            let start = block + step * 32;
            let plain = start + row % 64 / 8 * ATOM + row % 8 * LINE + within;
            assert_eq!(swizzle(plain), copied(row, byte), "row {row} byte {byte}");
        }
    }
}

#[test]
fn wgmma_finds_lines_along_m_or_n() {
    // MN-major, 16-bit elements: a box is 64 elements of 64 k; `leading` from 64 elements to the next, `stride` from 8 k to the next
    let (leading, stride) = (64 * LINE, ATOM);
    for element in 0..256 {
        for k in 0..64 {
            let chunk = element / 64 * 64 * LINE;
            let put = chunk + copied(k, element % 64 * 2);
            let (step, within) = (k / 16, k % 16);
            let start = step * 16 * LINE;
            let plain =
                start + element / 64 * leading + element % 64 * 2 + within % 8 * LINE + within / 8 * stride;
            assert_eq!(swizzle(plain), put, "element {element} k {k}");
        }
    }
}

/// Row and column, within 64 x n, of register `register` of thread `thread` of a warpgroup.
fn fragment(thread: usize, register: usize) -> (usize, usize) {
    let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (register / 2 % 2);
    (row, 8 * (register / 4) + 2 * (thread % 4) + register % 2)
}

#[test]
fn fragments_cover_a_tile_once() {
    for n in [64, 128, 192, 256] {
        let all: HashSet<_> =
            (0..128).flat_map(|thread| (0..n / 2).map(move |register| fragment(thread, register))).collect();
        assert_eq!(all.len(), 64 * n);
        assert!(all.iter().all(|&(row, column)| row < 64 && column < n));
    }
}

#[test]
fn packed_results_reach_their_columns() {
    // 16-bit results: stmatrix puts the pair of thread 4 r + c of matrix i at row r, columns 2 c and 2 c + 1 of the address that thread
    // 8 i + r gives
    for warp in 0..4 {
        for box_column in [0, 64] {
            for turn in 0..4 {
                for matrix in 0..4 {
                    for lane in 0..32 {
                        let (r, pair) = (lane / 4, lane % 4);
                        let giver = 8 * matrix + r;
                        let row = warp * 16 + giver % 16;
                        let unit = 2 * turn + giver / 16;
                        let address = row * LINE + ((unit ^ (row % 8)) * 16) + pair * 4;
                        // packed register: pairs of accumulators in order
                        let packed = box_column / 4 + 4 * turn + matrix;
                        let (want_row, want_column) = fragment(warp * 32 + lane, 2 * packed);
                        assert_eq!(address, copied(want_row, (want_column - box_column) * 2));
                    }
                }
            }
        }
    }
}

#[test]
fn wide_results_reach_their_columns() {
    for thread in 0..128 {
        let (warp, lane) = (thread / 32, thread % 32);
        for box_column in [0, 32, 64] {
            for i in 0..8 {
                let row = warp * 16 + lane / 4 + i % 2 * 8;
                let unit = i / 2 * 2 + lane % 4 / 2;
                let address = row * LINE + ((unit ^ (row % 8)) * 16) + lane % 2 * 8;
                let (want_row, want_column) = fragment(thread, box_column / 2 + i * 2);
                assert_eq!(address, copied(want_row, (want_column - box_column) * 4));
            }
        }
    }
}

/// `tile_at` for a grid of `tiles`: along m, n and the batch.
fn tile_at(tiles: (i32, i32), group: i32, index: i32) -> (i32, i32, i32) {
    let each = tiles.0 * tiles.1;
    let (batch, rest) = (index / each, index % each);
    let along_m = group > 0;
    let group = group.abs();
    let (fast, slow) = if along_m { tiles } else { (tiles.1, tiles.0) };
    let band = rest / (group * slow);
    let inside = rest - band * (group * slow);
    let width = group.min(fast - band * group);
    let across = inside / width;
    let along = band * group + (inside - across * width);
    if along_m { (along, across, batch) } else { (across, along, batch) }
}

#[test]
fn the_order_of_tiles_visits_each_once() {
    for tiles in [(1, 1), (1, 7), (7, 1), (3, 5), (8, 8), (9, 4), (17, 23), (64, 3)] {
        for group in [1, 2, 4, 8, 16, -1, -4, -8] {
            for batch in [1, 3] {
                let count = tiles.0 * tiles.1 * batch;
                let all: HashSet<_> = (0..count).map(|index| tile_at(tiles, group, index)).collect();
                assert_eq!(all.len(), count as usize, "{tiles:?} {group}");
                let inside = |&(m, n, b): &(i32, i32, i32)| m < tiles.0 && n < tiles.1 && b < batch;
                assert!(all.iter().all(inside), "{tiles:?} {group}");
            }
        }
    }
}

#[test]
fn a_ring_that_skips_stays_in_step() {
    for stages in [3u32, 4, 5, 6] {
        for slices in 1..20 {
            // the slow way
            let (mut stage, mut parity) = (0, 0);
            for _ in 0..slices {
                stage += 1;
                if stage == stages {
                    (stage, parity) = (0, parity ^ 1);
                }
            }
            assert_eq!((slices % stages, (slices / stages) & 1), (stage, parity));
        }
    }
}

fn linear() -> MatMul {
    MatMul::linear(256, 512, 128, DType::BF16, DType::BF16, DType::BF16)
}

fn of(op: MatMul) -> Result<Problem, String> {
    op.validate().expect("a valid op");
    Problem::of(&Op::MatMul(op)).map_err(|reason| reason.to_string())
}

#[test]
fn layouts_are_told_apart() {
    let nt = of(linear()).expect("NT");
    assert!(!nt.a_mn && !nt.b_mn && !nt.swapped);
    let nn = of(MatMul::nn(256, 512, 128, DType::BF16, DType::BF16, DType::F32)).expect("NN");
    assert!(!nn.a_mn && nn.b_mn);
    let tn = Tensor2 { dtype: DType::F16, strides: Matrix::col_major(256, 128) };
    let tn =
        of(MatMul { a: tn, ..MatMul::nn(256, 512, 128, DType::F16, DType::F16, DType::F16) }).expect("TN");
    assert!(tn.a_mn && tn.b_mn);
    // bytes are multiplied along k alone
    let bytes = MatMul::nn(256, 512, 128, DType::I8, DType::I8, DType::I32);
    assert!(of(bytes).expect_err("NN of i8").contains("contiguous along k"));
    assert!(of(MatMul::linear(256, 512, 128, DType::I8, DType::I8, DType::I32)).is_ok());
}

#[test]
fn a_column_major_c_is_turned_round() {
    let mut op = linear();
    op.c.strides = Matrix::col_major(256, 512);
    op.epilogue = Epilogue { bias: Some(DType::F32), ..Epilogue::default() };
    op.a_scale = Some(Granularity::Vector);
    let turned = of(op).expect("turned");
    assert!(turned.swapped && !turned.a_mn && !turned.b_mn);
    assert_eq!((turned.m, turned.n), (512, 256));
    assert_eq!((turned.a_scale, turned.b_scale), (None, Some(Granularity::Vector)));
    let at = turned.operands();
    assert_eq!((at.a, at.b, at.a_scale, at.b_scale, at.bias, at.c), (1, 0, None, Some(2), Some(3), 4));
}

#[test]
fn what_copies_cannot_walk_is_refused() {
    let strided = |f: &dyn Fn(&mut MatMul)| {
        let mut op = linear();
        f(&mut op);
        of(op).err()
    };
    assert!(strided(&|op| op.a.strides.row = 132).expect("an odd stride").contains("16 bytes"));
    assert!(strided(&|op| op.a.strides = Matrix { row: 256, col: 2, batch: 0 }).is_some());
    assert!(strided(&|op| op.k = 0).is_some());
    assert!(strided(&|op| op.b.dtype = DType::F16).is_some());
    assert!(strided(&|op| op.a_scale = Some(Granularity::Group(32))).is_some());
    assert!(strided(&|op| op.a.strides.row = 136).is_none());
    // a store would write behind the end of a row
    let odd = |op: &mut MatMul| {
        op.n = 509;
        op.b.strides.batch = 0;
    };
    assert!(strided(&odd).expect("an odd row").contains("whole 16 bytes"));
}

#[test]
fn operands_are_where_the_op_has_them() {
    let mut op = linear();
    op.b_scale = Some(Granularity::Tensor);
    op.epilogue.bias = Some(DType::BF16);
    op.epilogue.residual = Some(op.c);
    let at = of(op).expect("a product").operands();
    let names: Vec<_> = op.operands().iter().map(|o| o.name).collect();
    let of = |index: Option<usize>| index.map(|index| names[index]);
    assert_eq!((names[at.a], names[at.b], names[at.c]), ("a", "b", "c"));
    assert_eq!(of(at.a_scale), None);
    assert_eq!(of(at.b_scale), Some("b_scale"));
    assert_eq!(of(at.bias), Some("bias"));
    assert_eq!(of(at.residual), Some("residual"));
}

fn caps(multiprocessors: u32) -> CudaCaps {
    CudaCaps {
        sm: 90,
        multiprocessors,
        shared: 232_448,
        shared_of_multiprocessor: 233_472,
        threads: 2048,
        l2: 60 << 20,
        clock_khz: 1_980_000,
        memory_rate: 4_900_000_000_000,
    }
}

static ROW: Kernel = Kernel::new("row", "matmul", super::cost, super::prepare).with_configs(CONFIGS);

/// Microseconds on an H200 (results/gpu/h200-2026-11-27/tuning.jsonl) by the tiles in the order of [`CONFIGS`].
const MEASURED: [([usize; 3], [f32; 7]); 12] = [
    ([16, 14336, 4096], [79.5, 79.8, 41.7, 35.1, 35.1, 35.0, 34.8]),
    ([64, 14336, 4096], [76.8, 75.6, 45.5, 36.8, 36.6, 38.0, 37.8]),
    ([128, 14336, 4096], [70.7, 70.8, 42.5, 38.3, 37.7, 43.6, 44.9]),
    ([16, 4096, 4096], [27.4, 30.4, 17.0, 15.8, 18.7, 13.2, 16.1]),
    ([64, 4096, 4096], [28.9, 30.4, 17.0, 16.3, 19.2, 13.9, 16.7]),
    ([128, 4096, 4096], [27.2, 28.2, 15.9, 13.7, 14.5, 11.7, 11.8]),
    ([16, 4096, 14336], [99.9, 85.1, 41.7, 43.1, 38.5, 34.8, 36.7]),
    ([64, 4096, 14336], [92.2, 78.6, 42.5, 45.8, 39.9, 36.5, 38.9]),
    ([128, 4096, 14336], [85.0, 74.0, 44.5, 45.9, 42.4, 37.7, 38.1]),
    ([16, 28672, 4096], [150.4, 148.2, 81.1, 65.5, 65.6, 64.4, 65.8]),
    ([64, 28672, 4096], [149.6, 149.5, 80.7, 66.5, 65.8, 69.0, 68.6]),
    ([128, 28672, 4096], [133.8, 133.0, 83.5, 72.7, 74.6, 77.0, 77.0]),
];

#[test]
fn costs_choose_what_was_measured_to_be_fast() {
    let info = DeviceInfo::new("cuda:0", "cuda", "an H200", DeviceClass::DiscreteGpu, Arc::new(caps(132)));
    for ([m, n, k], times) in MEASURED {
        let op = Op::MatMul(MatMul::linear(m, n, k, DType::BF16, DType::BF16, DType::BF16));
        let cost = |config: usize| super::cost(&Choice::new(&ROW, config, None).candidate(&op, &info));
        let chosen = (0..CONFIGS.len()).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).expect("tiles");
        let best = times.iter().fold(f32::INFINITY, |best, time| best.min(*time));
        let costs: Vec<f32> = (0..CONFIGS.len()).map(|config| 1e6 * cost(config)).collect();
        let name = CONFIGS[chosen].name;
        assert!(
            times[chosen] <= 1.04 * best,
            "{m} x {n} x {k}: {name}, predicted {costs:?}, measured {times:?}"
        );
        // and they are about right
        let off = costs[chosen] / times[chosen];
        assert!(
            (0.75..1.25).contains(&off),
            "{m} x {n} x {k}: {name}, predicted {costs:?}, measured {times:?}"
        );
    }
    // many rows are for large tiles
    let op = Op::MatMul(MatMul::linear(4096, 4096, 4096, DType::BF16, DType::BF16, DType::BF16));
    let cost = |config: usize| super::cost(&Choice::new(&ROW, config, None).candidate(&op, &info));
    assert!((2..CONFIGS.len()).all(|config| cost(config) > cost(0).min(cost(1))));
}

#[test]
fn the_rest_of_a_grid_is_shared_out() {
    let tile = Tile::of(&CONFIGS[1]).expect("a tile");
    assert!(tile.rest);
    for multiprocessors in [20, 132] {
        for (m, n, k) in [(256, 512, 1024), (8192, 8192, 8192), (4096, 14336, 4096), (304, 520, 64)] {
            let mut problem = of(linear()).expect("a product");
            (problem.m, problem.n, problem.k) = (m, n, k);
            let s = tile.schedule(&problem, &caps(multiprocessors));
            let left = s.tiles - s.whole;
            let at_once = multiprocessors as usize / 2;
            assert_eq!(s.tiles, m.div_ceil(256) * n.div_ceil(128));
            assert!(s.clusters <= at_once && s.clusters <= s.whole + left * s.shares);
            if left > 0 {
                // the whole tiles are full turns, and what is left is one more at most
                assert!(s.shares > 1 && s.whole.is_multiple_of(at_once) && left * s.shares <= at_once);
                // shares cover the slices without gaps, and none is empty
                let slices = slices(&problem);
                let ends: Vec<_> = (0..=s.shares).map(|share| slices * share / s.shares).collect();
                assert!(ends.windows(2).all(|pair| pair[0] < pair[1]) && ends[s.shares] == slices);
            } else {
                assert_eq!(s.shares, 1);
            }
        }
    }
}

#[test]
fn f32_is_rounded_where_the_policy_allows_it() {
    let mut op = MatMul::linear(100, 512, 100, DType::F32, DType::BF16, DType::F32);
    op.b.strides = Matrix { row: 1, col: 104, batch: 0 };
    assert!(of(op).is_err());
    op.policy.quantised_activations = true;
    let problem = of(op).expect("rounded");
    assert_eq!((problem.element, problem.a.row, problem.rounded_rows()), (DType::BF16, 104, (100, 1)));
    op.c.strides = Matrix::col_major(104, 512);
    let turned = of(op).expect("turned");
    assert!(turned.swapped);
    assert_eq!((turned.b.col, turned.b.row, turned.rounded_rows()), (104, 1, (100, 1)));
}
