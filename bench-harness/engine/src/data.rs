//! Operands for measuring: random data, never zeros, and slots that ask for the work that the shape says.
//!
//! Data is drawn block by block, each block of 64 KiB from a generator of its own: the same seed gives the same bytes whatever the
//! number of threads.

use anyhow::Result;
use perjoule_kernels::op::Operand;
use perjoule_kernels::{Access, DType, Error, Op, block};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

/// Bytes that share a generator.
const BLOCK: usize = 64 << 10;

/// Zeroed bytes, or an error instead of an abort when there is no memory.
pub fn zeroed(bytes: u64) -> Result<Vec<u8>> {
    let refused = || Error::OutOfMemory { device: "host".into(), need: bytes, available: None };
    if perjoule_model::memory::available_memory().is_some_and(|have| bytes > have) {
        return Err(refused().into());
    }
    let size = usize::try_from(bytes).map_err(|_| refused())?;
    let mut list = Vec::new();
    list.try_reserve_exact(size).map_err(|_| refused())?;
    list.resize(size, 0);
    Ok(list)
}

/// The operands of `op` before a launch, in order; those that are only written are zeroed.
pub fn operands(op: &Op, seed: u64) -> Result<Vec<Vec<u8>>> {
    let list = op.operands();
    let operand = |(index, operand): (usize, &Operand)| {
        let mut bytes = zeroed(operand.bytes)?;
        if operand.access == Access::Write {
            return Ok(bytes);
        }
        if operand.slot {
            let values = slot(op, operand, seed);
            for (to, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *to = value.to_le_bytes();
            }
        } else if matches!((op, operand.name), (Op::Sample(_), "uniform")) {
            fill_with(operand.dtype, &mut bytes, seed ^ index as u64, uniform)?;
        } else {
            fill_with(operand.dtype, &mut bytes, seed ^ ((index as u64) << 32), normal)?;
        }
        Ok(bytes)
    };
    list.iter().enumerate().map(operand).collect()
}

/// Values of a slot under which the op does all the work of its shape.
fn slot(op: &Op, operand: &Operand, seed: u64) -> Vec<i32> {
    let count = operand.elements as usize;
    let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let last = |kv: usize, q: usize, i: usize| int(kv.saturating_sub(q).saturating_add(i % q.max(1)));
    match (op, operand.name) {
        (Op::Attention(a), "kv_len") => vec![int(a.kv.capacity); count],
        (Op::KvAppend(a), "kv_len") => vec![int(a.kv.capacity); count],
        (Op::QkNormRopeAppend(a), "kv_len") => vec![int(a.append.kv.capacity); count],
        (Op::QkNormRopeAppend(a), "positions") => {
            (0..count).map(|i| last(a.append.kv.capacity, a.append.q_len, i)).collect()
        }
        (Op::GroupedMatMul(g), "offsets") => (0..count)
            .map(|e| int((g.rows as u128 * e as u128 / g.experts.max(1) as u128) as usize))
            .collect(),
        (Op::Embed(e), _) => {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let vocab = e.vocab.max(1) as u64;
            (0..count).map(|_| int((random.next_u64() % vocab) as usize)).collect()
        }
        // a sequence starts empty, and its position is its length
        (Op::Advance(_), _) => vec![0; count],
        // positions, an order of rows: each its own index
        _ => (0..count).map(int).collect(),
    }
}

/// Nearly normal, mean 0 and variance 1: the sum of four uniform numbers.
fn normal(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 1.732_050_8
}

/// In `[0, 1)`.
fn uniform(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u32 << 24) as f32
}

fn fill_with(dtype: DType, bytes: &mut [u8], seed: u64, draw: fn(u64) -> f32) -> Result<()> {
    // whole blocks of every type
    let chunk = BLOCK / dtype.block_bytes() * dtype.block_bytes();
    let per_block = dtype.block_len();
    // integers of a spread that an i8 product shows
    let scale = if dtype.is_integer() { 32.0 } else { 1.0 };
    bytes.par_chunks_mut(chunk).enumerate().try_for_each(|(index, chunk)| {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(index as u64));
        let elements = chunk.len() / dtype.block_bytes() * per_block;
        let values: Vec<f32> = (0..elements).map(|_| scale * draw(random.next_u64())).collect();
        block::encode(dtype, &values, chunk)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_kernels::op::MatMul;

    #[test]
    fn data_is_random_repeatable_and_independent_of_threads() {
        let op = Op::from(MatMul::linear(64, 96, 1024, DType::BF16, DType::Q4_0, DType::BF16));
        let first = operands(&op, 7).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(first, pool.install(|| operands(&op, 7)).unwrap());
        assert_ne!(first, operands(&op, 8).unwrap());
        let mut values = vec![0.0; 64 * 1024];
        block::decode(DType::BF16, &first[0], &mut values).unwrap();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!(values.iter().filter(|x| **x == 0.0).count() < 100);
        assert_eq!(first[2].len(), 64 * 96 * 2);
    }

    #[test]
    fn blocks_differ_from_each_other() {
        let mut bytes = vec![0; 3 * BLOCK];
        fill_with(DType::F32, &mut bytes, 1, normal).unwrap();
        assert_ne!(bytes[..BLOCK], bytes[BLOCK..2 * BLOCK]);
    }
}
