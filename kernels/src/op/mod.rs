//! The ops of a transformer, each a plain struct in a file of its own, and [`Op`], their sum.
//!
//! An op holds all that fixes grid, tensor maps and scratch: shapes, dtypes, precision policy and *capacities*. What changes from
//! step to step (KV lengths, positions, block tables, expert offsets, token ids) lies in *slots*: i32 operands in device memory,
//! so that a recorded sequence of launches replays without host work.
//!
//! # Edges, settled once
//!
//! * `k = 0` gives zeros (plus bias and residual); empty batches and idle experts are computed, not refused.
//! * Attention rows without a visible key give 0. Causal masks are aligned bottom right: query `i` of `q_len` sees the keys up to
//!   `kv_len - q_len + i`. A window of `w` includes the query's own position.
//! * NaN propagates through softmax, norms and sums; [`Argmax`] treats NaN as larger than every number.
//! * Ties pick the lowest index.
//! * At a fixed thread count results are bitwise repeatable, unless a row's numerics say otherwise.
//!
//! # Adding an op
//!
//! One file here with its struct and [`Spec`], one variant of [`Op`] and one arm in [`Op::spec`], cases in the suite, and a
//! reference row in each backend: ARCHITECTURE.md walks through it.

mod add;
mod attention;
mod cast;
mod check;
mod collective;
mod embed;
mod fused;
mod gated;
mod grouped;
mod key;
mod kv;
mod matmul;
mod norm;
mod pack;
mod rope;
mod route;
mod sample;
pub mod slots;
mod softmax;

pub use add::Add;
pub use attention::Attention;
pub use cast::{Cast, Quantise};
pub use collective::{Collective, CollectiveKind};
pub use embed::Embed;
pub use fused::{GatedMatMul, HeadNorm, QkNormRopeAppend};
pub use gated::{Gated, GatedKind};
pub use grouped::GroupedMatMul;
pub use kv::{Advance, KvAppend};
pub use matmul::{Activation, Constant, Epilogue, Granularity, MatMul, Policy, Tensor2};
pub use norm::{LayerNorm, Norm, Residual, RmsNorm};
pub use pack::Pack;
pub use rope::{Rope, RopeScaling, RopeStyle};
pub use route::{Combine, Route, RouteOrder};
pub use sample::{Argmax, Sample};
pub use softmax::Softmax;

pub(crate) use check::ensure;

use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::fmt;

/// Most operands that an op can have: arguments of a launch are kept in arrays of this length, so that nothing is allocated.
pub const MAX_OPERANDS: usize = 24;

/// One operand of an op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand {
    /// Its name in the op's documentation.
    pub name: &'static str,
    /// Element type; slots are i32.
    pub dtype: DType,
    /// Elements from the first to the last that is touched, inclusive: strides and gaps counted.
    pub elements: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Alignment that a launch checks, in bytes: that of an element, or more where a prepared row relies on more.
    pub align: u32,
    /// How the op touches it.
    pub access: Access,
    /// Whether it is a slot: small integers that steer the op, not data.
    pub slot: bool,
}

impl Operand {
    /// A data operand over `extent` elements (`None`, an overflow, becomes the largest size and is refused by `validate`).
    pub fn data(name: &'static str, dtype: DType, extent: Option<usize>, access: Access) -> Self {
        let elements = extent.map_or(u64::MAX, |e| e as u64);
        let bytes = extent.and_then(|e| dtype.bytes(e)).unwrap_or(u64::MAX);
        let align = match dtype.is_block() {
            true => 1,
            false => dtype.block_bytes() as u32,
        };
        Operand { name, dtype, elements, bytes, align, access, slot: false }
    }

    /// A slot of `count` i32.
    pub fn slot(name: &'static str, count: Option<usize>, access: Access) -> Self {
        Operand { slot: true, ..Operand::data(name, DType::I32, count, access) }
    }
}

/// An operand's elements as a reference sees them: decoded to f64, gaps between rows included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values {
    /// One number per element of the operand's extent.
    pub value: Vec<f64>,
    /// For operands that the op writes: the sum of the absolute values of the terms behind each element, from which the tolerance
    /// follows. As long as `value` once the reference has run; elements that the op does not write keep 0.
    pub magnitude: Vec<f64>,
}

impl Values {
    /// Values to read.
    pub fn new(value: Vec<f64>) -> Self {
        Values { value, magnitude: Vec::new() }
    }

    /// Element as an index or a length, where it is a slot.
    pub fn index(&self, at: usize) -> i64 {
        self.value[at] as i64
    }

    /// The elements of a slot.
    pub fn slots(&self) -> Vec<i32> {
        self.value.iter().map(|&x| x as i32).collect()
    }

    /// Makes `magnitude` as long as `value`; elements that nothing has set get 0.
    pub fn settle(&mut self) {
        self.magnitude.resize(self.value.len(), 0.0);
    }

    /// Sets an element and the magnitude of the terms behind it.
    pub fn set(&mut self, at: usize, value: f64, magnitude: f64) {
        self.settle();
        self.value[at] = value;
        self.magnitude[at] = magnitude;
    }
}

/// What every op can say of itself.
pub trait Spec: fmt::Debug {
    /// Lower-case name, the first part of its kernels' names.
    fn name(&self) -> &'static str;
    /// Refuses nonsense: zero where there must be something, strides that collide in an output, sizes that overflow, dtypes
    /// that the op is not defined for.
    fn validate(&self) -> Result<()>;
    /// What a launch takes, in order. Meaningful once `validate` has passed.
    fn operands(&self) -> Vec<Operand>;
    /// Element types that tell its kernels apart, in the order in which kernel names spell them.
    fn dtypes(&self) -> Vec<DType>;
    /// Sizes by name, as listings print them and command lines take them.
    fn shape(&self) -> Vec<(&'static str, usize)>;
    /// Floating-point operations, a multiplication and an addition counted as two; only work that is needed (a causal mask halves it).
    fn flops(&self) -> u64;
    /// Bytes that must be moved when every operand is touched once.
    fn bytes(&self) -> u64;
    /// What measurements of this op may be used for: ops with the same key are the same work up to the sizes that vary from call to
    /// call, which are rounded up to powers of two. It tells apart element types, layouts, epilogues, policies, masks and paging.
    fn tuning_key(&self) -> String;
    /// Terms of the longest sum behind an output element.
    fn reduction(&self) -> usize {
        1
    }
    /// Computes it with f64 accumulation: `args` in the order of `operands`, each as long as its operand. Written for clarity, not
    /// speed. Slots may hold anything: what an op's documentation does not allow is read as [`slots`] says, here and by kernels.
    fn reference(&self, args: &mut [Values]);
}

/// Any op.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Matrix product.
    MatMul(MatMul),
    /// Attention over a KV cache.
    Attention(Attention),
    /// Matrix products of the experts of a mixture.
    GroupedMatMul(GroupedMatMul),
    /// Root-mean-square normalisation.
    RmsNorm(RmsNorm),
    /// Layer normalisation.
    LayerNorm(LayerNorm),
    /// Rotary position embedding.
    Rope(Rope),
    /// Gated activation.
    Gated(Gated),
    /// Softmax.
    Softmax(Softmax),
    /// Rows of a table, by index.
    Embed(Embed),
    /// Element-wise addition.
    Add(Add),
    /// Choice of experts.
    Route(Route),
    /// Weighted sum of the experts' results.
    Combine(Combine),
    /// Writing into a KV cache.
    KvAppend(KvAppend),
    /// Moving the slots of a step.
    Advance(Advance),
    /// Index of the largest element.
    Argmax(Argmax),
    /// Random choice among the likely.
    Sample(Sample),
    /// Conversion of the element type.
    Cast(Cast),
    /// Quantisation.
    Quantise(Quantise),
    /// Packing of a constant operand.
    Pack(Pack),
    /// Collective operation of a group of devices.
    Collective(Collective),
    /// Norms of queries and keys, rotation, and writing into a KV cache.
    QkNormRopeAppend(Box<QkNormRopeAppend>),
    /// Gate and up projections with the gated activation.
    GatedMatMul(Box<GatedMatMul>),
}

impl Op {
    /// The descriptor behind the variant: the one place that lists them all.
    pub fn spec(&self) -> &dyn Spec {
        match self {
            Op::MatMul(op) => op,
            Op::Attention(op) => op,
            Op::GroupedMatMul(op) => op,
            Op::RmsNorm(op) => op,
            Op::LayerNorm(op) => op,
            Op::Rope(op) => op,
            Op::Gated(op) => op,
            Op::Softmax(op) => op,
            Op::Embed(op) => op,
            Op::Add(op) => op,
            Op::Route(op) => op,
            Op::Combine(op) => op,
            Op::KvAppend(op) => op,
            Op::Advance(op) => op,
            Op::Argmax(op) => op,
            Op::Sample(op) => op,
            Op::Cast(op) => op,
            Op::Quantise(op) => op,
            Op::Pack(op) => op,
            Op::Collective(op) => op,
            Op::QkNormRopeAppend(op) => op.as_ref(),
            Op::GatedMatMul(op) => op.as_ref(),
        }
    }

    /// Lower-case name, the first part of its kernels' names.
    pub fn name(&self) -> &'static str {
        self.spec().name()
    }

    /// Refuses nonsense: see [`Spec::validate`].
    pub fn validate(&self) -> Result<()> {
        self.spec().validate()?;
        let overflow = self.operands().iter().any(|o| o.bytes > isize::MAX as u64);
        if overflow {
            return Err(Error::Overflow { op: self.name(), what: "the size of an operand" });
        }
        Ok(())
    }

    /// What a launch takes, in order.
    pub fn operands(&self) -> Vec<Operand> {
        self.spec().operands()
    }

    /// Element types as kernel names spell them, such as `bf16bf16f32`.
    pub fn dtype_label(&self) -> String {
        self.spec().dtypes().iter().map(|d| d.name()).collect()
    }

    /// Sizes by name.
    pub fn shape(&self) -> Vec<(&'static str, usize)> {
        self.spec().shape()
    }

    /// What measurements of it may be used for: see [`Spec::tuning_key`].
    pub fn tuning_key(&self) -> String {
        self.spec().tuning_key()
    }

    /// Floating-point operations.
    pub fn flops(&self) -> u64 {
        self.spec().flops()
    }

    /// Bytes that must be moved at least.
    pub fn bytes(&self) -> u64 {
        self.spec().bytes()
    }

    /// Computes it with f64 accumulation.
    pub fn reference(&self, args: &mut [Values]) {
        self.spec().reference(args);
        let written = self.operands().into_iter().map(|o| o.access.writes());
        args.iter_mut().zip(written).filter(|(_, written)| *written).for_each(|(arg, _)| arg.settle());
    }

    /// The operands that stay the same from launch to launch and may be packed once, all of them in one format.
    pub fn constants(&self) -> Vec<Constant> {
        match self {
            Op::MatMul(op) => op.constant().into_iter().collect(),
            Op::GroupedMatMul(op) => op.constant().into_iter().collect(),
            Op::GatedMatMul(op) => op.constants(),
            Op::Attention(_)
            | Op::RmsNorm(_)
            | Op::LayerNorm(_)
            | Op::Rope(_)
            | Op::Gated(_)
            | Op::Softmax(_)
            | Op::Embed(_)
            | Op::Add(_)
            | Op::Route(_)
            | Op::Combine(_)
            | Op::KvAppend(_)
            | Op::Advance(_)
            | Op::Argmax(_)
            | Op::Sample(_)
            | Op::Cast(_)
            | Op::Quantise(_)
            | Op::Pack(_)
            | Op::Collective(_)
            | Op::QkNormRopeAppend(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.dtype_label())?;
        for (name, size) in self.shape() {
            write!(f, " {name}={size}")?;
        }
        Ok(())
    }
}

macro_rules! from_op {
    ($($op:ident),*) => {$(
        impl From<$op> for Op {
            fn from(op: $op) -> Op {
                Op::$op(op)
            }
        }
    )*};
}
from_op!(
    MatMul,
    Attention,
    GroupedMatMul,
    RmsNorm,
    LayerNorm,
    Rope,
    Gated,
    Softmax,
    Embed,
    Add,
    Route,
    Combine,
    KvAppend,
    Advance,
    Argmax,
    Sample,
    Cast,
    Quantise,
    Pack,
    Collective
);

impl From<GatedMatMul> for Op {
    fn from(op: GatedMatMul) -> Op {
        Op::GatedMatMul(Box::new(op))
    }
}

impl From<QkNormRopeAppend> for Op {
    fn from(op: QkNormRopeAppend) -> Op {
        Op::QkNormRopeAppend(Box::new(op))
    }
}
