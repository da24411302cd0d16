//! Times products and attention on command, ours (`ours`) or those of the crate gemm (`gemm`): a JSON object a line on stdin, an answer a
//! line on stdout. `peers.py` is the same for libraries that Python reaches.
//!
//! | command | answer |
//! |---|---|
//! | `{"do": "setup", ..case}` | `{"ok": true, "sample": [..]}` (the first outputs), or `{"refused": why}` |
//! | `{"do": "time", "calls": n}` | `{"seconds": of one call}` |
//! | `{"do": "bandwidth"}` | `{"bytes_per_second": read}`, ours only |

use anyhow::{Context, Result, bail, ensure};
use perjoule::kernels::op::{Attention, MatMul, Operand};
use perjoule::kernels::{Access, DType, KvLayout, Matrix, Op, block};
use perjoule::{Arg, Buffer, Device, Prepared, Stream};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Something that is ready to be called.
trait Ready {
    fn call(&mut self) -> Result<()>;
    fn sample(&mut self) -> Result<Vec<f32>>;
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (who, threads) = (args.next().context("ours or gemm")?, args.next().context("threads")?.parse()?);
    let device = perjoule::open_with_threads("cpu", Some(threads))?;
    let mut ready: Option<Box<dyn Ready>> = None;
    for line in std::io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let answer = match command["do"].as_str() {
            Some("setup") => {
                drop(ready.take()); // its memory goes before the next one's is taken
                let made = match who.as_str() {
                    "ours" => Ours::new(&device, &command).map(|ours| Box::new(ours) as Box<dyn Ready>),
                    _ => Gemm::new(threads, &command).map(|gemm| Box::new(gemm) as Box<dyn Ready>),
                };
                match made.and_then(|mut made| Ok((made.call()?, made.sample()?, made))) {
                    Ok(((), sample, made)) => {
                        ready = Some(made);
                        json!({ "ok": true, "sample": sample })
                    }
                    Err(error) => json!({ "refused": format!("{error:#}") }),
                }
            }
            Some("time") => {
                let (calls, ready) =
                    (command["calls"].as_u64().unwrap_or(1), ready.as_mut().context("no setup")?);
                let start = Instant::now();
                (0..calls).try_for_each(|_| ready.call())?;
                json!({ "seconds": start.elapsed().as_secs_f64() / calls as f64 })
            }
            Some("bandwidth") => json!({ "bytes_per_second": bandwidth(threads)? }),
            _ => bail!("unknown command {command}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The best of some readings of half a gibibyte.
fn bandwidth(threads: usize) -> Result<f64> {
    let options = perjoule::cpu::Options { threads: Some(threads), ..Default::default() };
    let device = perjoule::cpu::CpuDevice::open(&options)?;
    let memory = perjoule::cpu::ceiling::Bandwidth::new(&device, 512 << 20)?;
    let mut best = 0.0f64;
    for _ in 0..20 {
        let start = Instant::now();
        let bytes = memory.read(&device)?;
        best = best.max(bytes as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Numbers from -0.5 to 0.5 that every worker draws alike: splitmix64 of the index (Steele, Lea and Flood, 2014).
fn random(seed: u64, count: usize) -> Vec<f32> {
    let draw = |index: u64| {
        let mut x = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed << 40);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count as u64).map(draw).collect()
}

fn size(case: &Value, name: &str) -> Result<usize> {
    case[name].as_u64().map(|n| n as usize).with_context(|| format!("the case has no {name}"))
}

struct Ours {
    prepared: Prepared,
    stream: Box<dyn Stream>,
    sets: Vec<Vec<Buffer>>,
    next: usize,
}

fn op_of(case: &Value) -> Result<(Op, Vec<usize>)> {
    let dtype: DType = case["dtype"].as_str().unwrap_or_default().parse().map_err(anyhow::Error::msg)?;
    if case["op"] == "attention" {
        let (b, q, kv) = (size(case, "b")?, size(case, "q")?, size(case, "kv")?);
        let kv = KvLayout::contiguous(8, kv, 128);
        return Ok((Attention::causal(b, q, 32, kv, dtype).into(), vec![1, 2]));
    }
    let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
    // activations beside blocks are f32; sums of i8 are i32
    let (a, c) = match dtype {
        DType::I8 => (DType::I8, DType::I32),
        _ if dtype.is_block() => (DType::F32, DType::F32),
        _ => (dtype, dtype),
    };
    let mut op = MatMul::linear(m, n, k, a, dtype, c);
    if case["form"] == "square" {
        op.b.strides = Matrix::row_major(k, n);
        op.b_constant = false;
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
    fn new(device: &Device, case: &Value) -> Result<Self> {
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
        let rotate = case["rotate"].as_u64().unwrap_or(0);
        let bytes: u64 = rotating.iter().map(|&index| first[index].bytes()).sum();
        let mut sets = vec![first];
        for _ in 1..rotate.div_ceil(bytes.max(1)).max(1) {
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

    fn sample(&mut self) -> Result<Vec<f32>> {
        let out = self.prepared.operands().iter().position(|o| o.access.writes()).context("no output")?;
        let dtype = self.prepared.operands()[out].dtype;
        let bytes = self.stream.read(&self.sets[0][out]).wait()?;
        let mut values = vec![0.0; 8];
        block::decode(dtype, &bytes[..8 * dtype.block_bytes()], &mut values)?;
        Ok(values)
    }
}

/// The crate gemm, for f32.
struct Gemm {
    threads: usize,
    m: usize,
    n: usize,
    k: usize,
    square: bool,
    a: Vec<f32>,
    b: Vec<Vec<f32>>,
    c: Vec<f32>,
    next: usize,
}

impl Gemm {
    fn new(threads: usize, case: &Value) -> Result<Self> {
        ensure!(case["op"] == "matmul" && case["dtype"] == "f32", "multiplies f32");
        let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
        let b = random(1, n * k);
        let copies = (case["rotate"].as_u64().unwrap_or(0) as usize).div_ceil(4 * n * k).max(1);
        let (a, b, c) = (random(0, m * k), vec![b; copies], vec![0.0; m * n]);
        Ok(Gemm { threads, m, n, k, square: case["form"] == "square", a, b, c, next: 0 })
    }
}

impl Ready for Gemm {
    fn call(&mut self) -> Result<()> {
        let (m, n, k) = (self.m, self.n, self.k);
        let (b_col, b_row) = if self.square { (1, n as isize) } else { (k as isize, 1) };
        let parallelism = match self.threads {
            1 => gemm::Parallelism::None,
            threads => gemm::Parallelism::Rayon(threads),
        };
        let (a, b, c) = (self.a.as_ptr(), self.b[self.next].as_ptr(), self.c.as_mut_ptr());
        // SAFETY: sizes and strides are those of the vectors; C is nobody else's.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c,
                1,
                n as isize,
                false,
                a,
                1,
                k as isize,
                b,
                b_col,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        self.next = (self.next + 1) % self.b.len();
        Ok(())
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        Ok(self.c[..8].to_vec())
    }
}
