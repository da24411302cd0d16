//! Block formats against golden files that tests/golden/block_formats.py makes with ggml and its `gguf`
//! package, and against bounds that follow from the formats' definitions.

use perjoule_kernels::block::{self, mxfp4, q4_k, q6_k, q8_0};
use perjoule_kernels::dtype::DType;
use proptest::prelude::*;

const FORMATS: [(DType, &[u8]); 5] = [
    (DType::Q8_0, include_bytes!("golden/block_q8_0.bin")),
    (DType::Q4_0, include_bytes!("golden/block_q4_0.bin")),
    (DType::Q4K, include_bytes!("golden/block_q4_k.bin")),
    (DType::Q6K, include_bytes!("golden/block_q6_k.bin")),
    (DType::MxFp4, include_bytes!("golden/block_mxfp4.bin")),
];

struct Golden {
    values: Vec<f32>,
    /// Blocks of `values`, then random blocks.
    blocks: Vec<u8>,
    /// Values of `blocks`.
    decoded: Vec<f32>,
}

fn golden(dtype: DType, file: &[u8]) -> Golden {
    let (head, rest) = file.split_at(8);
    let count = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
    let (quantised, total) = (count(0), count(0) + count(4));
    let (values, rest) = rest.split_at(quantised * dtype.block_len() * 4);
    let (blocks, decoded) = rest.split_at(total * dtype.block_bytes());
    assert_eq!(decoded.len(), total * dtype.block_len() * 4);
    let floats = |b: &[u8]| b.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    Golden { values: floats(values), blocks: blocks.to_vec(), decoded: floats(decoded) }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn quantise(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0xaa; values.len() / dtype.block_len() * dtype.block_bytes()];
    block::encode(dtype, values, &mut out).unwrap();
    out
}

fn dequantise(dtype: DType, blocks: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; blocks.len() / dtype.block_bytes() * dtype.block_len()];
    block::decode(dtype, blocks, &mut out).unwrap();
    out
}

#[test]
fn dequantised_blocks_equal_gguf_bit_for_bit() {
    for (dtype, file) in FORMATS {
        let golden = golden(dtype, file);
        for (index, (block, expected)) in golden
            .blocks
            .chunks(dtype.block_bytes())
            .zip(golden.decoded.chunks(dtype.block_len()))
            .enumerate()
        {
            assert_eq!(bits(&dequantise(dtype, block)), bits(expected), "{dtype} block {index}");
        }
        let mut wide = vec![f64::NAN; golden.decoded.len()];
        block::decode_f64(dtype, &golden.blocks, &mut wide).unwrap();
        assert!(wide.iter().zip(&golden.decoded).all(|(&w, &d)| w == f64::from(d)), "{dtype}");
    }
}

#[test]
fn quantised_blocks_equal_the_reference_bit_for_bit() {
    for (dtype, file) in FORMATS {
        let golden = golden(dtype, file);
        for (index, (values, expected)) in
            golden.values.chunks(dtype.block_len()).zip(golden.blocks.chunks(dtype.block_bytes())).enumerate()
        {
            assert_eq!(quantise(dtype, values), expected, "{dtype} block {index}: {values:?}");
        }
        let wide: Vec<f64> = golden.values.iter().map(|&v| f64::from(v)).collect();
        let mut out = vec![0; golden.values.len() / dtype.block_len() * dtype.block_bytes()];
        block::encode_f64(dtype, &wide, &mut out).unwrap();
        assert_eq!(out, golden.blocks[..out.len()], "{dtype}");
    }
}

/// The largest error that a format may make on a block whose values reach `reach` in magnitude and span
/// `span`.
fn error_bound(dtype: DType, reach: f32, span: f32) -> f32 {
    match dtype {
        // Half a step of reach / 127, and the scale's own rounding (2^-11) times the reach.
        DType::Q8_0 => reach * (0.5 / 127.0 + 1.0 / 2048.0),
        // A whole step of reach / 8 at the end opposite to the extreme, which codes stop at 7.
        DType::Q4_0 => reach * (1.0 / 8.0 + 1.0 / 2048.0),
        // Group scales and minima are fitted and then rounded to 6 bits: within one step of the widest
        // group's grid, a quarter more.
        DType::Q4K => 1.25 * span / 15.0 + reach / 126.0,
        // As above with 6-bit codes, one-sided at the positive end.
        DType::Q6K => reach / 31.0 * 1.25,
        // The largest gap is 4 to 6 in units of reach / (4..8); saturation above 6 loses up to 2 units of at
        // most reach / 4.
        DType::MxFp4 => reach / 4.0,
        _ => unreachable!("{dtype} is not a block format"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn values_come_back_within_the_error_bound(seed in prop::collection::vec(-1.0f32..1.0, 256), exponent in -10i32..10) {
        let values: Vec<f32> = seed.iter().map(|v| v * 2f32.powi(exponent)).collect();
        for (dtype, _) in FORMATS {
            let back = dequantise(dtype, &quantise(dtype, &values));
            for (values, back) in values.chunks(dtype.block_len()).zip(back.chunks(dtype.block_len())) {
                let reach = values.iter().fold(0f32, |m, v| m.max(v.abs()));
                let low = values.iter().fold(0f32, |m, &v| m.min(v));
                let high = values.iter().fold(0f32, |m, &v| m.max(v));
                // A subnormal f16 scale is off by up to 2^-25, which the largest codes multiply.
                let subnormal = if dtype == DType::MxFp4 { 0.0 } else { (dtype.max_value() / 65504.0 / 2f64.powi(25)) as f32 };
                let bound = error_bound(dtype, reach, high - low) * 1.0001 + subnormal;
                for (v, b) in values.iter().zip(back) {
                    prop_assert!((v - b).abs() <= bound, "{dtype}: {v} came back as {b}, bound {bound}");
                }
            }
        }
    }

    #[test]
    fn a_block_decodes_the_same_wherever_it_stands(bytes in prop::collection::vec(any::<u8>(), 3 * 210)) {
        for (dtype, _) in FORMATS {
            let blocks = &bytes[..3 * dtype.block_bytes()];
            let together = dequantise(dtype, blocks);
            let apart: Vec<f32> =
                blocks.chunks(dtype.block_bytes()).flat_map(|block| dequantise(dtype, block)).collect();
            prop_assert_eq!(bits(&together), bits(&apart));
        }
    }
}

#[test]
fn lengths_that_do_not_belong_together_are_refused() {
    for (dtype, _) in FORMATS {
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        let mut out = vec![0.0; 2 * len];
        let error = block::decode(dtype, &vec![0; bytes], &mut out).unwrap_err().to_string();
        assert!(error.contains(dtype.name()) && error.contains(&(2 * bytes).to_string()), "{error}");
        assert!(block::decode(dtype, &vec![0; bytes + 1], &mut out[..len]).is_err());
        let error = block::decode(dtype, &vec![0; bytes], &mut out[..len - 1]).unwrap_err().to_string();
        assert!(error.contains("whole blocks"), "{error}");
        assert!(block::encode(dtype, &out, &mut vec![0; bytes]).is_err());
        assert!(block::encode(dtype, &out[..len + 1], &mut vec![0; 2 * bytes]).is_err());
        assert!(block::encode(dtype, &[], &mut []).is_ok());
    }
}

#[test]
fn values_that_a_format_cannot_hold_are_refused() {
    for (dtype, _) in FORMATS {
        let mut out = vec![0; 2 * dtype.block_bytes()];
        let mut values = vec![1.0; 2 * dtype.block_len()];
        let at = dtype.block_len() + 5;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[at] = bad;
            let error = block::encode(dtype, &values, &mut out).unwrap_err().to_string();
            assert!(error.contains(&format!("element {at}")), "{dtype}: {error}");
        }
        for huge in [1e30, -1e30, f32::MAX] {
            values[at] = huge;
            let result = block::encode(dtype, &values, &mut out);
            if dtype == DType::MxFp4 {
                assert!(result.is_ok());
                assert!(dequantise(dtype, &out)[at].is_finite());
            } else {
                assert!(result.unwrap_err().to_string().contains("overflows"), "{dtype} {huge}");
            }
        }
    }
}

#[test]
fn q8_0_puts_each_element_where_the_layout_says() {
    for i in 0..q8_0::LEN {
        let mut block = [0; q8_0::BYTES];
        block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        block[2 + i] = -3i8 as u8;
        let mut expected = [0.0; q8_0::LEN];
        expected[i] = -1.5;
        assert_eq!(dequantise(DType::Q8_0, &block), expected);
    }
}

#[test]
fn group_scales_of_q4_k_unpack_as_they_were_packed() {
    // Powers of two in distinct groups: each scale and minimum is recovered exactly.
    let mut values = [0f32; q4_k::LEN];
    for (g, group) in values.as_chunks_mut::<{ q4_k::GROUP }>().0.iter_mut().enumerate() {
        for (i, v) in group.iter_mut().enumerate() {
            *v = (8 * g + 7) as f32 * (i % 16) as f32;
        }
    }
    let mut block = [0; q4_k::BYTES];
    q4_k::quantise_block(&values, &mut block);
    assert_eq!(q4_k::scales(&block), [7, 15, 23, 31, 39, 47, 55, 63].map(|scale| (scale, 0)));
    let mut back = [0f32; q4_k::LEN];
    q4_k::dequantise_block(&block, &mut back);
    assert_eq!(back, values);
}

#[test]
fn groups_of_q6_k_are_independent() {
    // A group of small values next to a large one keeps its own scale.
    let mut values = [0f32; q6_k::LEN];
    for (i, v) in values.iter_mut().enumerate() {
        let size = if i / q6_k::GROUP == 3 { 100.0 } else { 1.0 };
        *v = size * ((i % 16) as f32 - 8.0) / 8.0;
    }
    let back = dequantise(DType::Q6K, &quantise(DType::Q6K, &values));
    for (i, (v, b)) in values.iter().zip(back).enumerate() {
        // Scales are multiples of 1 / 128 of the largest, 100 / 32 / 128: a third of the small groups' own
        // scale, 1 / 32.
        let bound = if i / q6_k::GROUP == 3 { 100.0 / 31.0 } else { 0.5 };
        assert!((v - b).abs() <= bound, "element {i}: {v} came back as {b}");
    }
}

#[test]
fn mxfp4_codes_mean_what_ocp_mx_says() {
    let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for e in [0u8, 1, 2, 126, 127, 128, 251, 252] {
        let scale = 2f64.powi(i32::from(e) - 127);
        for code in 0..16u8 {
            let mut block = [code | (code << 4); mxfp4::BYTES];
            block[0] = e;
            let magnitude = scale * e2m1[usize::from(code & 7)];
            let expected = if code & 8 == 0 { magnitude } else { -magnitude };
            assert!(dequantise(DType::MxFp4, &block).iter().all(|&v| f64::from(v) == expected));
        }
    }
    let mut block = [0x21; mxfp4::BYTES];
    block[0] = 255;
    assert!(dequantise(DType::MxFp4, &block).iter().all(|v| v.is_nan()));
}

#[test]
fn mxfp4_rounds_to_the_nearest_code_at_every_scale() {
    // Every magnitude from subnormal to the largest float, including those just below a power of two.
    for exponent in -149..128 {
        for factor in [1.0f64, 1.2, 1.5, 1.7, 2.0 - 1.0 / (1 << 23) as f64] {
            let reach = (factor * 2f64.powi(exponent)) as f32;
            let values: Vec<f32> = (0..32i16)
                .map(|i| reach * (f32::from(i) / 31.0) * if i % 3 == 0 { -1.0 } else { 1.0 })
                .collect();
            let block = quantise(DType::MxFp4, &values);
            // Log2 of the largest value, rounded down, less 2, from the definition in f64.
            let floor = f64::from(reach).log2().floor();
            let expected = (floor - 2.0 + 127.0).max(0.0);
            assert_eq!(f64::from(block[0]), expected, "{reach:e}");
            let scale = 2f64.powi(i32::from(block[0]) - 127);
            for (v, b) in values.iter().zip(dequantise(DType::MxFp4, &block)) {
                let nearest = mxfp4::DOUBLED
                    .iter()
                    .map(|&k| (f64::from(*v) - scale * f64::from(k) / 2.0).abs())
                    .fold(f64::INFINITY, f64::min);
                assert_eq!((f64::from(*v) - f64::from(b)).abs(), nearest, "{v:e} of {reach:e}");
            }
        }
    }
}

#[test]
fn hugging_face_mxfp4_keeps_element_order() {
    // Two blocks whose element i has code (i * 5 + block) mod 16.
    let code = |block: usize, i: usize| ((i * 5 + block) % 16) as u8;
    let blocks: Vec<u8> = (0..32)
        .map(|byte| code(byte / 16, byte % 16 * 2) | (code(byte / 16, byte % 16 * 2 + 1) << 4))
        .collect();
    let scales = [127, 130];
    let values = dequantise(DType::MxFp4, &mxfp4::from_hf(&blocks, &scales).unwrap());
    for (index, value) in values.into_iter().enumerate() {
        let (block, i) = (index / 32, index % 32);
        let expected = f32::from(mxfp4::DOUBLED[usize::from(code(block, i))]) / 2.0 * [1.0, 8.0][block];
        assert_eq!(value, expected, "block {block} element {i}");
    }
    assert!(mxfp4::from_hf(&blocks, &scales[..1]).is_err());
    assert!(mxfp4::from_hf(&blocks[1..], &scales).is_err());
    assert!(mxfp4::from_hf(&[0; 33], &scales).is_err());
    assert_eq!(mxfp4::from_hf(&[], &[]).unwrap(), []);
}
