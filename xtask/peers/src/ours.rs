//! Our kernels.

use crate::{Ready, copies, ends, random, size};
use anyhow::{Context, Result};
use perjoule::kernels::op::{Attention, MatMul, Operand, Policy};
use perjoule::kernels::{Access, DType, KvLayout, Matrix, Op, block};
use perjoule::{Arg, Buffer, Device, Prepared, Stream};
use serde_json::Value;

/// Half a gibibyte of memory that is read from one end to the other.
pub(crate) struct Read {
    device: perjoule::cpu::CpuDevice,
    memory: perjoule::cpu::ceiling::Bandwidth,
}

impl Read {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let options = perjoule::cpu::Options { threads: Some(threads), ..Default::default() };
        let device = perjoule::cpu::CpuDevice::open(&options)?;
        let memory = perjoule::cpu::ceiling::Bandwidth::new(&device, 512 << 20)?;
        Ok(Read { device, memory })
    }
}

impl Ready for Read {
    fn call(&mut self) -> Result<()> {
        self.memory.read(&self.device)?;
        Ok(())
    }

    /// The mebibytes of a call.
    fn sample(&mut self) -> Result<Vec<f32>> {
        Ok(vec![(self.memory.read(&self.device)? >> 20) as f32])
    }
}

pub(crate) struct Ours {
    prepared: Prepared,
    stream: Box<dyn Stream>,
    sets: Vec<Vec<Buffer>>,
    next: usize,
}

fn op_of(case: &Value) -> Result<(Op, Vec<usize>)> {
    let dtype: DType = case["dtype"].as_str().unwrap_or_default().parse().map_err(anyhow::Error::msg)?;
    // beside blocks llama.cpp rounds activations to eight bits, and PyTorch rounds the weights of attention to bf16
    let policy = Policy { quantised_activations: true, ..Policy::default() };
    if case["op"] == "attention" {
        let (b, q, kv) = (size(case, "b")?, size(case, "q")?, size(case, "kv")?);
        let kv = KvLayout::contiguous(size(case, "kv_heads")?, kv, size(case, "d")?);
        let causal = case["causal"] != false;
        let op = Attention { policy, causal, ..Attention::causal(b, q, size(case, "heads")?, kv, dtype) };
        return Ok((op.into(), vec![1, 2]));
    }
    let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
    // activations beside blocks are f32; sums of i8 are i32
    let (a, c) = match dtype {
        DType::I8 => (DType::I8, DType::I32),
        _ if dtype.is_block() => (DType::F32, DType::F32),
        _ => (dtype, dtype),
    };
    let mut op = MatMul { policy, ..MatMul::linear(m, n, k, a, dtype, c) };
    if case["form"] == "square" {
        op.b.strides = Matrix::row_major(k, n);
        op.b_constant = case["packed"] == true;
    }
    Ok((op.into(), vec![1]))
}

fn contents(index: usize, operand: &Operand, case: &Value) -> Result<Vec<u8>> {
    if operand.slot {
        let kv = size(case, "kv")? as i32;
        return Ok((0..operand.elements).flat_map(|_| kv.to_le_bytes()).collect());
    }
    let mut values = random(index as u64, operand.elements as usize);
    if operand.dtype == DType::I8 {
        values.iter_mut().for_each(|v| *v = (*v * 128.0).round());
    }
    let mut bytes = vec![0; operand.bytes as usize];
    block::encode(operand.dtype, &values, &mut bytes)?;
    Ok(bytes)
}

impl Ours {
    pub(crate) fn new(device: &Device, case: &Value) -> Result<Self> {
        let (op, rotating) = op_of(case)?;
        let choice = device.select(&op, &[])?;
        let prepared = device.prepare_choice(&op, choice)?;
        let mut stream = device.stream()?;
        let (constants, plain) = (op.constants(), op.operands());
        let mut first = Vec::new();
        for (index, (operand, place)) in plain.iter().zip(prepared.operands()).enumerate() {
            let mut buffer = device.alloc(operand.bytes)?;
            if operand.access != Access::Write {
                stream.write(&buffer, &contents(index, operand, case)?)?;
            }
            if let (Some(format), Some(constant)) =
                (choice.pack, constants.iter().find(|c| c.operand == index))
            {
                let packed = device.alloc(place.bytes)?;
                device.pack_constant_into(&mut *stream, constant, format, Arg::Buf(&buffer), &packed)?;
                buffer = packed;
            }
            first.push(buffer);
        }
        stream.reserve(prepared.scratch())?;
        let bytes: u64 = rotating.iter().map(|&index| first[index].bytes()).sum();
        let mut sets = vec![first];
        for _ in 1..copies(case, bytes as usize) {
            let mut set = sets[0].clone();
            for &index in &rotating {
                set[index] = device.alloc(sets[0][index].bytes())?;
                stream.copy(&set[index], &sets[0][index])?;
            }
            sets.push(set);
        }
        Ok(Ours { prepared, stream, sets, next: 0 })
    }
}

impl Ready for Ours {
    fn call(&mut self) -> Result<()> {
        let mut args: Vec<Arg<'_>> = self.sets[self.next].iter().map(Arg::Buf).collect();
        self.prepared.launch(&mut *self.stream, &mut args)?;
        self.next = (self.next + 1) % self.sets.len();
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.stream.sync().wait()?)
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        let out = self.prepared.operands().iter().position(|o| o.access.writes()).context("no output")?;
        let dtype = self.prepared.operands()[out].dtype;
        let bytes = self.stream.read(&self.sets[0][out]).wait()?;
        let mut values = vec![0.0; bytes.len() / dtype.block_bytes()];
        block::decode(dtype, &bytes, &mut values)?;
        Ok(ends(&values))
    }
}
