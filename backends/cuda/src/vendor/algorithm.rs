//! Which of the proposed algorithms is fastest, measured when a product is prepared.
//!
//! Operands of the product's own size and random content are made for that; a product of few rows reads copies of its weight in turn, so
//! that it comes from memory as in a model. Each proposal is timed shortly, and the best of them in turn for longer: the first one that
//! the library names is often not the fastest.

use super::cublaslt::Addresses;
use super::plan::Plan;
use crate::device::Inner;
use crate::stream::CudaStream;
use perjoule_kernels::op::{MatMul, Op};
use perjoule_kernels::{Buffer, DType, Error, Result, Stream};
use std::sync::Arc;
use std::time::Duration;

/// Operations and bytes up to which it matters to nobody: the first that runs is taken.
const SMALL: (u64, u64) = (1 << 28, 1 << 24);
/// Rows up to which a weight is read once, and so comes from memory.
const FEW: usize = 64;
/// Copies of a weight go through so many times the last-level cache.
const ROTATED: u64 = 4;
/// Calls of each proposal in the first round.
const SHORT: usize = 3;
/// Proposals in the second round, turns of each, and about how long a turn lasts.
const FINAL: (usize, usize, Duration) = (6, 5, Duration::from_micros(1500));

/// Operands to measure on.
struct Stage {
    stream: CudaStream,
    buffers: Vec<Buffer>,
    at: Addresses,
    /// Addresses of the copies of B.
    weights: Vec<u64>,
    next: usize,
}

/// The index of the fastest proposal, and the bytes of workspace that it needs.
pub(super) fn best(inner: &Arc<Inner>, plan: &mut Plan, op: &MatMul) -> Result<(usize, u64)> {
    let described = Op::from(*op);
    let small = described.flops() <= SMALL.0 && described.bytes() <= SMALL.1;
    let mut stage = Stage::new(inner, plan, op, small)?;
    let (mut times, mut why) = (Vec::new(), String::new());
    for index in 0..plan.proposals.len() {
        // the first call loads its code
        if let Err(error) = stage.calls(plan, index, 1) {
            why = error;
            stage.finish()?;
            continue;
        }
        if small {
            stage.finish()?;
            return Ok((index, plan.proposals[index].workspaceSize as u64));
        }
        times.push((index, stage.time(plan, index, SHORT)?));
    }
    times.sort_by_key(|&(_, time)| time);
    times.truncate(FINAL.0);
    let mut rounds: Vec<(usize, usize, Vec<Duration>)> = times
        .into_iter()
        .map(|(index, time)| {
            let calls = FINAL.2.as_nanos() / time.as_nanos().max(1);
            (index, (calls as usize).clamp(1, 200), Vec::new())
        })
        .collect();
    for _ in 0..FINAL.1 {
        for (index, calls, times) in &mut rounds {
            times.push(stage.time(plan, *index, *calls)?);
        }
    }
    for (.., times) in &mut rounds {
        times.sort();
    }
    let fastest = rounds.iter().min_by_key(|(.., times)| times[times.len() / 2]).map(|(index, ..)| *index);
    let fastest = fastest.ok_or_else(|| Error::Unsupported {
        what: "cuBLASLt",
        why: format!("none of the algorithms that it proposes runs: {why}"),
    })?;
    Ok((fastest, plan.proposals[fastest].workspaceSize as u64))
}

impl Stage {
    fn new(inner: &Arc<Inner>, plan: &Plan, op: &MatMul, small: bool) -> Result<Self> {
        let described = Op::from(*op);
        let workspace = plan.proposals.iter().map(|p| p.workspaceSize as u64).max().unwrap_or(0);
        let mut stream = CudaStream::new(inner.clone())?;
        let (mut buffers, mut at) = (Vec::new(), Addresses::default());
        let mut weights = Vec::new();
        for operand in described.operands() {
            let copies = match operand.name {
                "b" if op.m <= FEW => ROTATED * inner.caps.l2 / operand.bytes.max(1) + 1,
                _ => 1,
            };
            let mut first: Option<Buffer> = None;
            for _ in 0..if small { 1 } else { copies.min(1024) } {
                let buffer = Buffer::new(inner.alloc(operand.bytes, false)?);
                match &first {
                    Some(first) => stream.copy(&buffer, first)?,
                    None => fill(&mut stream, &buffer, operand.dtype)?,
                }
                first.get_or_insert_with(|| buffer.clone());
                let address = buffer.address();
                match operand.name {
                    "a" => at.a = address,
                    "b" => weights.push(address),
                    "a_scale" => at.a_scale = Some(address),
                    "b_scale" => at.b_scale = Some(address),
                    "bias" => at.bias = Some(address),
                    "residual" => at.residual = Some(address),
                    _ => at.c = address,
                }
                buffers.push(buffer);
            }
        }
        let scratch = Buffer::new(inner.alloc(workspace.max(1), false)?);
        at.workspace = scratch.address();
        buffers.push(scratch);
        // launches of the library are noted by nobody: what they use goes when they are over
        stream.sync().wait()?;
        Ok(Stage { stream, buffers, at, weights, next: 0 })
    }

    /// Starts so many calls.
    fn calls(&mut self, plan: &mut Plan, index: usize, count: usize) -> Result<(), String> {
        let (algorithm, workspace) = (plan.proposals[index].algo, plan.proposals[index].workspaceSize as u64);
        self.stream.begin("cuBLASLt").map_err(|error| error.to_string())?;
        for _ in 0..count {
            self.at.b = self.weights[self.next];
            self.next = (self.next + 1) % self.weights.len();
            plan.start(&algorithm, self.at, workspace, self.stream.handle())?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.stream.sync().wait()
    }

    /// Time of a call.
    fn time(&mut self, plan: &mut Plan, index: usize, count: usize) -> Result<Duration> {
        let fault = |detail: String| Error::Fault { kernel: "cuBLASLt", detail };
        let begin = self.stream.record()?;
        self.calls(plan, index, count).map_err(fault)?;
        let end = self.stream.record()?;
        let time = end.since(&*begin).wait()?;
        Ok(time.unwrap_or_default() / count as u32)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // launches of the library are noted by nobody: its memory may go only when they are over
        let _ = self.stream.sync().wait();
        self.buffers.clear();
    }
}

/// Fills a buffer with random numbers around 1 and below, which draw as much power as those of a model; scales with 1.
fn fill(stream: &mut CudaStream, buffer: &Buffer, dtype: DType) -> Result<()> {
    const MOST: u64 = 1 << 19;
    let elements = (buffer.bytes() / dtype.block_bytes() as u64).clamp(1, MOST) as usize;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u32
    };
    // -1 to 1, in steps of 2^-23
    let float = |bits: u32| bits as f32 / 8_388_608.0 - 1.0;
    let bytes: Vec<u8> = match dtype {
        DType::F32 if buffer.bytes() <= 4 => 1f32.to_ne_bytes().to_vec(),
        DType::F32 => (0..elements).flat_map(|_| float(random()).to_ne_bytes()).collect(),
        DType::F16 => {
            (0..elements).flat_map(|_| half::f16::from_f32(float(random())).to_ne_bytes()).collect()
        }
        DType::BF16 => {
            (0..elements).flat_map(|_| half::bf16::from_f32(float(random())).to_ne_bytes()).collect()
        }
        // below 2 in magnitude, never NaN
        DType::F8E4M3 => (0..elements).map(|_| (random() as u8) & 0xbf).collect(),
        _ => (0..elements).map(|_| random() as u8).collect(),
    };
    let mut at = 0;
    while at < buffer.bytes() {
        let piece = (buffer.bytes() - at).min(bytes.len() as u64);
        stream.write(&buffer.view(at, piece)?, &bytes[..piece as usize])?;
        at += piece;
    }
    Ok(())
}
