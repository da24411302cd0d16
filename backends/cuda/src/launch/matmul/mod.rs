//! Matrix products.
//!
//! | file | rows |
//! |---|---|
//! | [`any`] | everything the ops allow, on every GPU |
//! | [`panels`] | many rows with packed weights of block formats, by the tensor cores of sm_80 and later |
//! | [`skinny`] | few rows with weights that stream from memory, by the tensor cores of sm_80 and later |
//! | [`tensor`] | dense operands of one type, by the tensor cores of sm_80 and later |

pub(crate) mod any;
pub(crate) mod panels;
pub(crate) mod skinny;
pub(crate) mod tensor;

use crate::device::CudaCaps;
use perjoule_kernels::op::{Activation, GatedKind, Granularity, Op};
use perjoule_kernels::{Candidate, Error};

/// Whether a gate and its up projection have biases of different types.
fn has_unlike_biases(op: &Op) -> bool {
    match op {
        Op::GatedMatMul(op) => match (op.gate.epilogue.bias, op.up.epilogue.bias) {
            (Some(gate), Some(up)) => gate != up,
            _ => false,
        },
        _ => false,
    }
}

/// A [`Granularity`] as kernels have it (`common/product.cuh`), and the elements of a group.
fn granularity(scale: Option<Granularity>) -> (u32, i64) {
    match scale {
        None => (0, 1),
        Some(Granularity::Tensor) => (1, 1),
        Some(Granularity::Vector) => (2, 1),
        Some(Granularity::Group(group)) => (3, group as i64),
    }
}

/// An [`Activation`] as kernels have it (`common/math.cuh`).
fn activation(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
    }
}

/// A [`GatedKind`] as kernels have it, with alpha and limit.
fn gate(kind: GatedKind) -> (u32, f32, f32) {
    match kind {
        GatedKind::SwiGlu => (0, 0.0, 0.0),
        GatedKind::GeGlu => (1, 0.0, 0.0),
        GatedKind::GeGluTanh => (2, 0.0, 0.0),
        GatedKind::GptOss { alpha, limit } => (3, alpha, limit),
    }
}

/// Where the operands of a product lie in the op's list; `None` where it has no such operand.
#[derive(Debug, Clone, Copy, Default)]
struct Places {
    a_scale: Option<usize>,
    b_scale: Option<usize>,
    up: Option<usize>,
    bias: Option<usize>,
    up_bias: Option<usize>,
    residual: Option<usize>,
    c: usize,
}

impl Places {
    /// Those of operands behind A and B (and the slots of a grouped product).
    fn of(op: &Op) -> Self {
        let mut places = Places::default();
        for (index, operand) in op.operands().iter().enumerate() {
            match operand.name {
                "a_scale" => places.a_scale = Some(index),
                "b_scale" => places.b_scale = Some(index),
                "up_b" => places.up = Some(index),
                "bias" | "gate_bias" => places.bias = Some(index),
                "up_bias" => places.up_bias = Some(index),
                "residual" => places.residual = Some(index),
                "c" | "out" => places.c = index,
                _ => {}
            }
        }
        places
    }
}

/// What a GPU can do, for costs; modest where it is unknown.
struct Speed {
    /// Bytes a second.
    memory: f32,
    multiprocessors: f32,
    /// Cycles a second.
    clock: f32,
}

fn speed(candidate: &Candidate<'_>) -> Speed {
    let caps = candidate.info.caps::<CudaCaps>();
    caps.map_or(Speed { memory: 1e12, multiprocessors: 60.0, clock: 1.5e9 }, |caps| Speed {
        memory: (caps.memory_rate as f32).max(1e11),
        multiprocessors: caps.multiprocessors.max(1) as f32,
        clock: caps.clock_khz.max(500_000) as f32 * 1e3,
    })
}

/// Seconds from a launch's start to its end where it does nothing.
const LAUNCH: f32 = 2e-6;

fn other_op(op: &Op) -> Error {
    Error::Unsupported { what: "this op", why: format!("the row does not run {}", op.name()) }
}
