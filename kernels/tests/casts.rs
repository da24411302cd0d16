//! Conversions of plain types against tables built from the formats' definitions, and against golden files
//! made by torch.

use perjoule_kernels::block::{decode, decode_f64, encode, encode_f64};
use perjoule_kernels::dtype::DType;
use perjoule_kernels::float8::f32_to_e4m3;

/// A small binary float by its definition: sign bit, exponent bits, fraction bits.
struct Format {
    dtype: DType,
    exponent_bits: u32,
    fraction_bits: u32,
    /// Magnitude code of infinity; none when the format saturates.
    infinity: Option<u32>,
    /// Magnitude code of the largest finite value.
    largest: u32,
}

const FORMATS: [Format; 3] = [
    Format {
        dtype: DType::F16,
        exponent_bits: 5,
        fraction_bits: 10,
        infinity: Some(0x7c00),
        largest: 0x7bff,
    },
    Format {
        dtype: DType::BF16,
        exponent_bits: 8,
        fraction_bits: 7,
        infinity: Some(0x7f80),
        largest: 0x7f7f,
    },
    Format { dtype: DType::F8E4M3, exponent_bits: 4, fraction_bits: 3, infinity: None, largest: 0x7e },
];

impl Format {
    fn sign_bit(&self) -> u32 {
        1 << (self.exponent_bits + self.fraction_bits)
    }

    /// The value that the scheme of exponent and fraction gives a magnitude code, whether or not the format
    /// reserves it.
    fn magnitude(&self, code: u32) -> f64 {
        let bias = (1 << (self.exponent_bits - 1)) - 1;
        let one = f64::from(1u32 << self.fraction_bits);
        let fraction = f64::from(code & ((1 << self.fraction_bits) - 1)) / one;
        match (code >> self.fraction_bits) as i32 {
            0 => fraction * 2f64.powi(1 - bias),
            exponent => (1.0 + fraction) * 2f64.powi(exponent - bias),
        }
    }

    /// Magnitudes of the finite codes in order, then that of the code after the largest, which stands for
    /// overflow.
    fn magnitudes(&self) -> Vec<f64> {
        (0..=self.largest + 1).map(|code| self.magnitude(code)).collect()
    }

    /// The code nearest to a value that is not NaN, ties to the even code, found in the table.
    fn nearest(&self, table: &[f64], value: f64) -> u32 {
        let magnitude = value.abs();
        let above = table.partition_point(|&m| m < magnitude);
        let code = if above == 0 {
            0
        } else if above == table.len() {
            above as u32 - 1
        } else {
            let (below, up) = (magnitude - table[above - 1], table[above] - magnitude);
            let below_is_even = above % 2 == 1;
            if below < up || (below == up && below_is_even) { above as u32 - 1 } else { above as u32 }
        };
        let code = if code > self.largest { self.infinity.unwrap_or(self.largest) } else { code };
        if value.is_sign_negative() { code | self.sign_bit() } else { code }
    }

    fn code_of(&self, bytes: &[u8]) -> u32 {
        match *bytes {
            [byte] => u32::from(byte),
            [low, high] => u32::from(u16::from_le_bytes([low, high])),
            _ => panic!("{} bytes are no code of {}", bytes.len(), self.dtype),
        }
    }

    fn is_nan(&self, code: u32) -> bool {
        let magnitude = code & (self.sign_bit() - 1);
        magnitude > self.infinity.unwrap_or(self.largest)
    }
}

/// Encodes `values` and returns the code of each.
fn codes(format: &Format, values: &[f32]) -> Vec<u32> {
    let size = format.dtype.block_bytes();
    let mut out = vec![0; values.len() * size];
    encode(format.dtype, values, &mut out).unwrap();
    out.chunks(size).map(|bytes| format.code_of(bytes)).collect()
}

#[test]
fn every_code_decodes_to_its_defined_value() {
    for format in &FORMATS {
        let size = format.dtype.block_bytes();
        let count = 2 * format.sign_bit();
        let bytes: Vec<u8> = (0..count).flat_map(|code| code.to_le_bytes().into_iter().take(size)).collect();
        let (mut narrow, mut wide) = (vec![0f32; count as usize], vec![0f64; count as usize]);
        decode(format.dtype, &bytes, &mut narrow).unwrap();
        decode_f64(format.dtype, &bytes, &mut wide).unwrap();
        for code in 0..count {
            let (narrow, wide) = (narrow[code as usize], wide[code as usize]);
            let magnitude = code & (format.sign_bit() - 1);
            if format.is_nan(code) {
                assert!(narrow.is_nan() && wide.is_nan(), "{} code {code:#x}", format.dtype);
                continue;
            }
            let expected =
                if Some(magnitude) == format.infinity { f64::INFINITY } else { format.magnitude(magnitude) };
            let expected = if code == magnitude { expected } else { -expected };
            assert_eq!(wide.to_bits(), expected.to_bits(), "{} code {code:#x}", format.dtype);
            assert_eq!(f64::from(narrow).to_bits(), expected.to_bits(), "{} code {code:#x}", format.dtype);
        }
        // Every code that is a number comes back.
        for (code, back) in codes(format, &narrow).into_iter().enumerate() {
            assert!(back == code as u32 || format.is_nan(code as u32), "{} code {code:#x}", format.dtype);
        }
    }
}

#[test]
fn f32_rounds_to_the_nearest_code() {
    // A prime stride through all bit patterns: every exponent, both signs, NaNs.
    let values: Vec<f32> = (0..=u32::MAX).step_by(1021).map(f32::from_bits).collect();
    for format in &FORMATS {
        let table = format.magnitudes();
        for (value, code) in values.iter().zip(codes(format, &values)) {
            if value.is_nan() {
                assert!(format.is_nan(code), "{} {:#x}", format.dtype, value.to_bits());
            } else {
                let expected = format.nearest(&table, f64::from(*value));
                assert_eq!(code, expected, "{} {value:e}", format.dtype);
            }
        }
    }
}

#[test]
fn midpoints_and_their_neighbours_round_correctly() {
    for format in &FORMATS {
        let table = format.magnitudes();
        let size = format.dtype.block_bytes();
        let mut narrow = Vec::new();
        let mut wide = Vec::new();
        for pair in table.windows(2) {
            let midpoint = (pair[0] + pair[1]) / 2.0;
            for sign in [1.0, -1.0] {
                let value = sign * midpoint;
                // f32 holds every midpoint of a narrower type exactly.
                assert_eq!(f64::from(value as f32), value);
                narrow.extend([(value as f32).next_down(), value as f32, (value as f32).next_up()]);
                // So near a midpoint that rounding to f32 first would land on it.
                wide.extend([value.next_down(), value, value.next_up()]);
            }
        }
        for (value, code) in narrow.iter().zip(codes(format, &narrow)) {
            assert_eq!(code, format.nearest(&table, f64::from(*value)), "{} {value:e}", format.dtype);
        }
        let mut out = vec![0; wide.len() * size];
        encode_f64(format.dtype, &wide, &mut out).unwrap();
        for (value, bytes) in wide.iter().zip(out.chunks(size)) {
            assert_eq!(format.code_of(bytes), format.nearest(&table, *value), "{} {value:e}", format.dtype);
        }
    }
}

#[test]
fn f64_out_of_the_range_of_f32_overflows_or_vanishes() {
    let values = [1e300, -1e300, 1e-300, -1e-300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -0.0];
    for format in &FORMATS {
        let table = format.magnitudes();
        let size = format.dtype.block_bytes();
        let mut out = vec![0; values.len() * size];
        encode_f64(format.dtype, &values, &mut out).unwrap();
        for (value, bytes) in values.iter().zip(out.chunks(size)) {
            let code = format.code_of(bytes);
            if value.is_nan() {
                assert!(format.is_nan(code));
            } else {
                assert_eq!(code, format.nearest(&table, *value), "{} {value:e}", format.dtype);
            }
        }
    }
}

#[test]
fn casts_equal_torch() {
    let (count, records) = include_bytes!("golden/cast_f32.bin").split_at(4);
    let records = records.as_chunks::<9>().0;
    assert_eq!(records.len(), u32::from_le_bytes(count.try_into().unwrap()) as usize);
    let values: Vec<f32> = records.iter().map(|r| f32::from_le_bytes([r[0], r[1], r[2], r[3]])).collect();
    let [f16, bf16, e4m3] = FORMATS.each_ref().map(|format| codes(format, &values));
    for (i, record) in records.iter().enumerate() {
        assert_eq!(f16[i], u32::from(u16::from_le_bytes([record[4], record[5]])), "{:e}", values[i]);
        assert_eq!(bf16[i], u32::from(u16::from_le_bytes([record[6], record[7]])), "{:e}", values[i]);
        assert_eq!(e4m3[i], u32::from(record[8]), "{:e}", values[i]);
    }
}

#[test]
fn e4m3_saturates_and_keeps_nan() {
    for (value, code) in [
        (448.0, 0x7e),
        (464.0, 0x7e),
        (f32::MAX, 0x7e),
        (f32::INFINITY, 0x7e),
        (-449.0, 0xfe),
        (f32::NEG_INFINITY, 0xfe),
        (-0.0, 0x80),
        (f32::NAN, 0x7f),
        (-f32::NAN, 0xff),
    ] {
        assert_eq!(f32_to_e4m3(value), code, "{value}");
    }
}

#[test]
fn integers_round_half_to_even_and_saturate() {
    let values = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.5, -128.5, 1e10, -1e10, f32::NAN, f32::INFINITY];
    let expect = |dtype: DType, expected: [f64; 12]| {
        let wide = values.map(f64::from);
        let mut bytes = vec![0; 12 * dtype.block_bytes()];
        encode(dtype, &values, &mut bytes).unwrap();
        let mut back = [0.0; 12];
        decode_f64(dtype, &bytes, &mut back).unwrap();
        assert_eq!(back, expected, "{dtype}");
        encode_f64(dtype, &wide, &mut bytes).unwrap();
        decode_f64(dtype, &bytes, &mut back).unwrap();
        assert_eq!(back, expected, "{dtype} from f64");
    };
    let i32s =
        [0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 128.0, -128.0, 2147483647.0, -2147483648.0, 0.0, 2147483647.0];
    expect(DType::I32, i32s);
    expect(DType::I8, i32s.map(|v| v.clamp(-128.0, 127.0)));
    expect(DType::U32, [0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 128.0, 0.0, 4294967295.0, 0.0, 0.0, 4294967295.0]);
}

#[test]
fn wide_integers_are_exact_in_f64_and_nearest_in_f32() {
    let values = [i32::MIN, -16_777_217, -1, 0, 16_777_217, 16_777_219, i32::MAX];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (mut wide, mut narrow) = ([0f64; 7], [0f32; 7]);
    decode_f64(DType::I32, &bytes, &mut wide).unwrap();
    decode(DType::I32, &bytes, &mut narrow).unwrap();
    assert_eq!(wide, values.map(f64::from));
    // 2^24 + 1 and 2^24 + 3 are halfway between floats.
    let nearest = [-2147483648.0, -16_777_216.0, -1.0, 0.0, 16_777_216.0, 16_777_220.0, 2147483648.0];
    assert_eq!(narrow, nearest);
    let mut back = [0; 28];
    encode_f64(DType::I32, &wide, &mut back).unwrap();
    assert_eq!(back[..], bytes);

    let bytes: Vec<u8> = [0, 1, 4_294_967_295u32].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut wide = [0f64; 3];
    decode_f64(DType::U32, &bytes, &mut wide).unwrap();
    assert_eq!(wide, [0.0, 1.0, 4294967295.0]);
    let mut back = [0; 12];
    encode_f64(DType::U32, &wide, &mut back).unwrap();
    assert_eq!(back[..], bytes);
}

#[test]
fn f32_is_stored_as_it_is() {
    let values = [0.0, -0.0, 1.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::NEG_INFINITY];
    let mut bytes = [0; 28];
    encode(DType::F32, &values, &mut bytes).unwrap();
    assert_eq!(bytes[8..12], 0x3f80_0000u32.to_le_bytes());
    let mut back = [f32::NAN; 7];
    decode(DType::F32, &bytes, &mut back).unwrap();
    assert_eq!(back.map(f32::to_bits), values.map(f32::to_bits));
}

#[test]
fn wrong_lengths_are_refused() {
    for dtype in DType::ALL.into_iter().filter(|dtype| !dtype.is_block()) {
        let size = dtype.block_bytes();
        for bytes in [0, 2 * size - 1, 2 * size + 1] {
            let mut storage = vec![0; bytes];
            assert!(encode(dtype, &[1.0; 2], &mut storage).is_err(), "{dtype}");
            assert!(encode_f64(dtype, &[1.0; 2], &mut storage).is_err(), "{dtype}");
            assert!(decode(dtype, &storage, &mut [0.0; 2]).is_err(), "{dtype}");
            let error = decode_f64(dtype, &storage, &mut [0.0; 2]).unwrap_err().to_string();
            assert!(error.contains(dtype.name()) && error.contains(&bytes.to_string()), "{error}");
        }
    }
}
