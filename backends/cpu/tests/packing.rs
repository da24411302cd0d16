//! Packing in portable code, in shapes small enough for interpreters: `cargo xtask sanitize --miri` runs this file under Miri, which also
//! sees races between lanes, and valgrind runs it as it is.

mod common;

use common::{Random, check};
use perjoule_cpu::{CpuDevice, Options};
use perjoule_kernels::op::{MatMul, Op, Pack, Tensor2};
use perjoule_kernels::{Arg, Choice, DType, Device, Matrix, PackFormat, prepare};

/// Devices of one and of two lanes, without any instruction set.
fn devices() -> Vec<CpuDevice> {
    let open = |threads| Options { threads: Some(threads), features: Some(Default::default()) };
    [1, 2].map(|threads| CpuDevice::open(&open(threads)).unwrap()).into()
}

/// Every format that a row asks for, those of other processors too: the row that packs knows all of them.
fn formats(device: &CpuDevice) -> Vec<&'static PackFormat> {
    let mut formats: Vec<&'static PackFormat> = Vec::new();
    for format in device.kernels().iter().flat_map(|kernel| kernel.packs.iter().copied()) {
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    formats
}

/// What a format packs: for blocks its name ends with theirs.
fn packed_from(format: &PackFormat) -> DType {
    let blocks = [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4];
    let named = |dtype: &DType| format.name.starts_with("blocks") && format.name.ends_with(dtype.name());
    blocks.into_iter().find(named).unwrap_or(format.dtype)
}

fn packed(device: &CpuDevice, pack: Pack, b: &[u8]) -> Vec<u8> {
    let op = Op::from(pack);
    op.validate().unwrap();
    let kernels = device.kernels();
    let row = kernels.iter().find(|kernel| kernel.op == "pack").unwrap();
    let prepared = prepare(device, &op, Choice::new(row, 0, None), None).unwrap();
    let mut stream = device.stream().unwrap();
    let from = device.alloc(b.len() as u64).unwrap();
    let to = device.alloc(pack.packed_bytes().unwrap()).unwrap();
    stream.write(&from, b).unwrap();
    stream.write(&to, &vec![0xa5; to.bytes() as usize]).unwrap();
    prepared.launch(&mut *stream, &mut [Arg::Buf(&from), Arg::Buf(&to)]).unwrap();
    stream.read(&to).wait().unwrap()
}

/// Element (`k`, `n`) of B as it lies in the packed bytes of a matrix of depth `depth`: from which byte on. `None` for blocks.
fn place(format: &PackFormat, depth: usize, k: usize, n: usize) -> Option<usize> {
    let (nr, size) = (format.panel, format.dtype.block_bytes());
    let per = match format.name {
        name if name.starts_with("panel") => return Some(((n / nr * depth + k) * nr + n % nr) * size),
        name if name.starts_with("pairs") => 2,
        name if name.starts_with("quads") => 4,
        _ => return None,
    };
    // rows of words are rounded up to whole tiles of sixteen
    let rows = depth.div_ceil(16 * per) * 16;
    Some((((n / nr * rows + k / per) * nr + n % nr) * per + k % per) * size)
}

/// Elements come to where their format says, and everything else is 0. What blocks become is judged by the products that read them
/// (the conformance suite); here only that no byte depends on the lanes, or is left unwritten.
#[test]
fn packing_writes_all_of_its_panels_and_nothing_else() {
    let devices = devices();
    let formats = formats(&devices[0]);
    assert!(formats.len() >= 20, "{formats:?}");
    let mut random = Random(7);
    for format in formats {
        let dtype = packed_from(format);
        let (len, size) = (dtype.block_len(), dtype.block_bytes());
        for (n, k, matrices) in
            [(1usize, 1usize, 1usize), (format.panel + 3, 67, 2), (2 * format.panel, 32, 1)]
        {
            let k = if dtype.is_block() { k.div_ceil(len) * len } else { k };
            let columns = Matrix::col_major(k, n);
            let rows = Matrix { row: n + 1, col: 1, batch: k * (n + 1) };
            for strides in [columns, rows] {
                if dtype.is_block() && strides != columns {
                    continue;
                }
                let pack = Pack { format, matrices, n, k, b: Tensor2 { dtype, strides } };
                let elements = strides.extent(matrices, k, n).unwrap().next_multiple_of(len);
                let b: Vec<u8> = (0..elements / len * size).map(|_| random.next() as u8 | 1).collect();
                let one = packed(&devices[0], pack, &b);
                assert_eq!(one, packed(&devices[1], pack, &b), "{format:?} of {n} x {k}");
                if dtype.is_block() {
                    continue;
                }
                let mut expected = vec![0; one.len()];
                for matrix in 0..matrices {
                    for (k_at, n_at) in (0..k).flat_map(|k| (0..n).map(move |n| (k, n))) {
                        let to = matrix * one.len() / matrices + place(format, k, k_at, n_at).unwrap();
                        let from = strides.at(matrix, k_at, n_at) * size;
                        expected[to..to + size].copy_from_slice(&b[from..from + size]);
                        if dtype == DType::I8 {
                            expected[to] ^= 0x80;
                        }
                    }
                }
                assert_eq!(one, expected, "{format:?} of {n} x {k}, {strides:?}");
            }
        }
    }
}

/// B widened by block and, with rows enough for two blocks, in a slab of the scratch that the lanes share; A interleaved.
#[test]
fn packing_on_the_way_gives_the_products_of_the_reference() {
    let devices = devices();
    for (a, b) in [(DType::F32, DType::F32), (DType::BF16, DType::F16), (DType::I8, DType::I8)] {
        let c = if a == DType::I8 { DType::I32 } else { DType::F32 };
        check(&devices, MatMul::nn(7, 9, 5, a, b, c), &[]);
        check(&devices, MatMul::linear(193, 9, 3, a, b, c), &[]);
    }
    check(&devices, MatMul::linear(2, 3, 32, DType::F32, DType::Q8_0, DType::F32), &[]);
}
