//! CPU rows that compute with the reference: right ones, which every case must pass, and faulty ones, which the suite must catch.

use perjoule::cpu::spmd::{Args, Spmd, launch};
use perjoule::cpu::team::Lane;
use perjoule_kernels::op::{Attention, GatedMatMul, MatMul, Values};
use perjoule_kernels::{
    Access, Config, DType, Device, Error, Kernel, Launch, Matrix, Numerics, Op, PackFormat, Reason, Request,
    Result, Rows, block,
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a row does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Fault {
    /// Nothing.
    None,
    /// A product leaves out the last k that do not fill a vector of 8.
    DroppedTail,
    /// The last element is 10 % too large.
    OneElement,
    /// Writes a byte behind the output.
    Behind,
    /// Writes a byte in front of the output.
    InFront,
    /// Adds to what the output held.
    Stale,
    /// Every second launch differs in the last bit of an element.
    Unrepeatable,
    /// NaN becomes 0.
    NanSwallowed,
    /// The window is one key too wide.
    Window,
    /// Causal masks are aligned top left.
    TopLeft,
    /// Reads a key more than there are.
    Padding,
    /// Rounds sums to f16.
    HalfPrecision,
    /// Writes between the rows of the output.
    Gaps,
    /// Leaves the output alone when k is 0.
    EmptySum,
    /// Sums of i8 saturate at 16 bits.
    Saturated,
    /// Of equal elements the last one is the largest.
    LastTie,
    /// Truncates on storing.
    Truncated,
    /// Stops at the first expert without rows.
    IdleExpert,
    /// Takes the matrix of the expert before.
    OtherExpert,
    /// Changes an input.
    Input,
    /// Panics.
    Panic,
}

/// Every fault with an op that shows it.
pub const FAULTS: [(&str, Fault); 29] = [
    ("matmul", Fault::DroppedTail),
    ("matmul", Fault::OneElement),
    ("matmul", Fault::Behind),
    ("matmul", Fault::InFront),
    ("matmul", Fault::Stale),
    ("matmul", Fault::Unrepeatable),
    ("matmul", Fault::NanSwallowed),
    ("matmul", Fault::HalfPrecision),
    ("matmul", Fault::Gaps),
    ("matmul", Fault::EmptySum),
    ("matmul", Fault::Saturated),
    ("matmul", Fault::Truncated),
    ("matmul", Fault::Panic),
    ("matmul", Fault::Input),
    ("grouped_matmul", Fault::OneElement),
    ("grouped_matmul", Fault::Gaps),
    ("grouped_matmul", Fault::IdleExpert),
    ("grouped_matmul", Fault::OtherExpert),
    ("attention", Fault::OneElement),
    ("attention", Fault::NanSwallowed),
    ("attention", Fault::Window),
    ("attention", Fault::TopLeft),
    ("attention", Fault::Padding),
    ("attention", Fault::HalfPrecision),
    ("rms_norm", Fault::OneElement),
    ("softmax", Fault::NanSwallowed),
    ("rope", Fault::Gaps),
    ("argmax", Fault::LastTie),
    ("kv_append", Fault::Behind),
];

/// A row of that op with that fault. Each call makes a new one.
pub fn row(op: &'static str, fault: Fault) -> &'static Kernel {
    let tile: &'static [usize] = match op {
        "matmul" | "grouped_matmul" | "gated_matmul" => &[4, 8, 8],
        "attention" => &[4, 8, 16],
        _ => &[16],
    };
    let params: &'static [usize] = Box::leak(Box::new([fault as usize]));
    let configs: &'static [Config] = Box::leak(Box::new([Config { name: "oracle", tile, params }]));
    let name = Box::leak(format!("{op}_oracle_{fault:?}").to_lowercase().into_boxed_str());
    let row = Kernel::new(name, op, |_| 1.0, prepare).with_configs(configs).with_numerics(|candidate| {
        let exact = matches!(candidate.op.name(), "cast" | "quantise" | "argmax" | "sample" | "advance");
        if exact { Numerics::EXACT } else { Numerics::F32 }
    });
    Box::leak(Box::new(row))
}

/// A right row of `gated_matmul` that reads both weights packed in f32 panels of 8 columns, by the reference on the unpacked ones.
pub fn gated_in_panels(device: &dyn Device) -> &'static Kernel {
    let formats = device.kernels().iter().flat_map(|k| k.packs).copied().collect::<Vec<_>>();
    let packs: &'static [&'static PackFormat] =
        Box::leak(formats.into_iter().filter(|p| p.name == "panel8_f32").take(1).collect());
    let base = row("gated_matmul", Fault::None);
    let prepare = |request: &Request<'_>| {
        let Op::GatedMatMul(op) = request.op else { return Err(other(request.op)) };
        let mut op = **op;
        for part in [&mut op.gate, &mut op.up] {
            part.b.strides = Matrix::row_major(part.k, part.n);
        }
        Ok(launch(request, InPanels(op)))
    };
    let row = Kernel::new("gated_matmul_oracle_panels", base.op, base.cost, prepare)
        .with_configs(base.configs)
        .with_packs(packs)
        .with_reject(|candidate| match candidate.op {
            Op::GatedMatMul(op) if op.gate.b_constant && op.gate.b.dtype == DType::F32 => None,
            _ => Some(Reason::new("reads constant weights in f32")),
        });
    Box::leak(Box::new(row))
}

fn other(op: &Op) -> Error {
    Error::Unsupported { what: "this row", why: format!("{op} is another op") }
}

struct InPanels(GatedMatMul);

impl Spmd for InPanels {
    fn run(&self, lane: &Lane<'_>, args: &Args) {
        if lane.index() != 0 {
            return;
        }
        let (k, n) = (self.0.gate.k, self.0.gate.n);
        let op = Op::from(self.0);
        let mut values = Vec::new();
        for (i, operand) in op.operands().iter().enumerate() {
            let mut value = vec![0.0; operand.elements as usize];
            match i {
                1 | 2 => {
                    let packed = args.read::<f32>(i);
                    for (at, value) in value.iter_mut().enumerate() {
                        let (step, col) = (at / n, at % n);
                        *value = f64::from(packed[(col / 8 * k + step) * 8 + col % 8]);
                    }
                }
                _ if operand.access == Access::Read => decode(operand.dtype, args.read(i), &mut value),
                _ => {}
            }
            values.push(Values::new(value));
        }
        op.reference(&mut values);
        let (last, rows) = (values.len() - 1, self.0.gated.out);
        let (dtype, size) = (self.0.gated.out_dtype, self.0.gated.out_dtype.block_bytes());
        for row in 0..rows.outer {
            let at = rows.start(row, 0);
            // SAFETY: the other lanes have left, and rows do not overlap.
            let out = unsafe { args.out::<u8>(last).slice(at * size..(at + rows.len) * size) };
            assert!(encode(dtype, &values[last].value[at..at + rows.len], out));
        }
    }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let fault = request.config.params.first().copied().unwrap_or(0);
    let all = FAULTS.map(|(_, fault)| fault);
    let fault = all.into_iter().find(|f| *f as usize == fault).unwrap_or(Fault::None);
    Ok(launch(request, Oracle { op: request.op.clone(), fault, launches: AtomicUsize::new(0) }))
}

struct Oracle {
    op: Op,
    fault: Fault,
    launches: AtomicUsize,
}

/// Marks elements that the reference does not set.
const UNSET: u64 = 0x7ff8_0bad_0bad_0bad;

impl Spmd for Oracle {
    fn run(&self, lane: &Lane<'_>, args: &Args) {
        if lane.index() != 0 {
            return;
        }
        assert!(self.fault != Fault::Panic, "this row panics on purpose");
        let launches = self.launches.fetch_add(1, Ordering::Relaxed);
        let operands = self.op.operands();
        let mut values: Vec<Values> = Vec::new();
        for (i, operand) in operands.iter().enumerate() {
            let mut value = vec![f64::from_bits(UNSET); operand.elements as usize];
            let bytes: &[u8] = match operand.access {
                Access::Read => args.read(i),
                // SAFETY: the other lanes have left, and the slice ends before anything is written.
                _ => unsafe { args.out::<u8>(i).shared(0..operand.bytes as usize) },
            };
            if operand.access != Access::Write {
                decode(operand.dtype, bytes, &mut value);
            }
            values.push(Values::new(value));
        }
        let original: Vec<Vec<f64>> = values.iter().map(|v| v.value.clone()).collect();
        self.compute(&mut values);
        for (i, operand) in operands.iter().enumerate().filter(|(_, o)| o.access.writes()) {
            let out = args.out::<u8>(i);
            // SAFETY: the other lanes have left; nothing else refers to the output now.
            let bytes = unsafe { out.slice(0..operand.bytes as usize) };
            self.store(operand.dtype, &mut values[i], &original[i], bytes, launches);
            match self.fault {
                // SAFETY: not at all, on purpose: tests run this between guard bands or guard pages.
                Fault::Behind => unsafe { out.pointer().add(bytes.len()).write(0) },
                // SAFETY: as above.
                Fault::InFront => unsafe { out.pointer().sub(1).write(0) },
                _ => {}
            }
        }
        if self.fault == Fault::Input
            && let Some(byte) = args.read::<u8>(0).first()
        {
            // SAFETY: not at all, on purpose; the byte is within the operand, and the other lanes have left.
            unsafe { std::ptr::from_ref(byte).cast_mut().write_volatile(!byte) };
        }
        if let Op::Quantise(op) = &self.op
            && op.to.is_block()
        {
            // codes cannot be recovered from what the reference gives
            let last = operands.len() - 1;
            // SAFETY: as above.
            let bytes = unsafe { args.out::<u8>(last).slice(0..operands[last].bytes as usize) };
            block::encode_f64(op.to, &original[0], bytes).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

fn decode(dtype: DType, bytes: &[u8], out: &mut [f64]) {
    block::decode_f64(dtype, bytes, out).unwrap_or_else(|e| panic!("{e}"));
}

impl Oracle {
    /// The reference, of a wrong op where that is the fault.
    fn compute(&self, values: &mut [Values]) {
        match (self.fault, &self.op) {
            (Fault::DroppedTail, Op::MatMul(op)) => {
                Op::MatMul(MatMul { k: op.k / 8 * 8, ..*op }).reference(values);
            }
            (Fault::EmptySum, Op::MatMul(op)) if op.k == 0 => {}
            (Fault::IdleExpert, Op::GroupedMatMul(op)) => {
                let offsets = &mut values[2].value;
                let idle = (0..op.experts).find(|&e| offsets[e] == offsets[e + 1]);
                if let Some(idle) = idle {
                    let end = offsets[idle];
                    offsets[idle..].fill(end);
                }
                self.op.reference(values);
            }
            (Fault::OtherExpert, Op::GroupedMatMul(op)) if op.experts > 1 => {
                let offsets = &mut values[2].value;
                offsets.rotate_left(1);
                offsets[op.experts] = offsets[op.experts - 1];
                self.op.reference(values);
            }
            (Fault::Window, Op::Attention(op)) => {
                Op::Attention(Attention { window: op.window.map(|w| w + 1), ..*op }).reference(values);
            }
            (Fault::Padding, Op::Attention(op)) => {
                for length in &mut values[3].value {
                    *length = (*length + 1.0).min(op.kv.capacity as f64);
                }
                self.op.reference(values);
            }
            (Fault::TopLeft, Op::Attention(op)) if op.causal && op.window.is_none() && !op.ragged => {
                top_left(op, values);
            }
            _ => self.op.reference(values),
        }
        if let (Fault::LastTie, Op::Argmax(op)) = (self.fault, &self.op) {
            let (x, ids) = values.split_at_mut(1);
            for row in 0..op.x.outer * op.x.inner {
                let start = op.x.start_of(row);
                let vector = &x[0].value[start..start + op.x.len];
                let largest = vector[ids[0].value[row] as usize];
                if let Some(last) = vector.iter().rposition(|&v| v == largest) {
                    ids[0].value[row] = last as f64;
                }
            }
        }
    }

    fn store(&self, dtype: DType, values: &mut Values, original: &[f64], bytes: &mut [u8], launches: usize) {
        let (len, size) = (dtype.block_len(), dtype.block_bytes());
        let is_set = |at: usize, values: &Values| {
            let magnitude = values.magnitude.get(at).copied().unwrap_or(0.0);
            values.value[at].to_bits() != original[at].to_bits() || magnitude != 0.0
        };
        let last = (0..values.value.len()).rev().find(|&at| is_set(at, values));
        let mut held = vec![0.0; values.value.len()];
        decode(dtype, bytes, &mut held);
        for (at, &held) in held.iter().enumerate() {
            let set = is_set(at, values);
            let value = &mut values.value[at];
            match self.fault {
                Fault::OneElement if Some(at) == last => *value *= 1.1,
                Fault::Stale if set => *value += held,
                Fault::NanSwallowed if set && value.is_nan() => *value = 0.0,
                Fault::HalfPrecision if set => {
                    let mut half = [0u8; 2];
                    let stored = block::encode_f64(DType::F16, &[*value], &mut half);
                    if stored.is_ok() && value.abs() < 60_000.0 {
                        decode(DType::F16, &half, std::slice::from_mut(value));
                    }
                }
                Fault::Saturated if dtype == DType::I32 => *value = value.clamp(-32768.0, 32767.0),
                _ => {}
            }
        }
        for (index, block) in bytes.chunks_exact_mut(size).enumerate() {
            let at = index * len;
            let set = (at..at + len).any(|at| is_set(at, values));
            if self.fault == Fault::Gaps && !set {
                block.fill(0);
            } else if set && encode(dtype, &values.value[at..at + len], block) {
                if self.fault == Fault::Truncated && dtype == DType::BF16 {
                    let bits = (values.value[at] as f32).to_bits();
                    block.copy_from_slice(&((bits >> 16) as u16).to_le_bytes());
                }
                if self.fault == Fault::Unrepeatable && launches % 2 == 1 && Some(at) == last {
                    block[0] ^= 1;
                }
            }
        }
    }
}

/// Stores a block; false where the format cannot hold it.
fn encode(dtype: DType, values: &[f64], out: &mut [u8]) -> bool {
    block::encode_f64(dtype, values, out).is_ok()
}

/// Attention whose query i sees the keys up to i: a prompt of its own for each query row.
fn top_left(op: &Attention, values: &mut [Values]) {
    for i in 0..op.q_len {
        let mut part = values.to_vec();
        for length in &mut part[3].value {
            *length = length.min(i as f64 + 1.0);
        }
        let small = Attention { causal: false, ..*op };
        Op::Attention(small).reference(&mut part);
        let (Some(from), Some(to)) = (part.last(), values.last_mut()) else { return };
        let Rows { inner, len, .. } = op.out;
        for b in 0..op.batch {
            for head in 0..inner {
                let start = op.out.start(b * op.q_len + i, head);
                for at in start..start + len {
                    to.set(at, from.value[at], from.magnitude[at]);
                }
            }
        }
    }
}
