//! What matmul, gated_matmul and grouped_matmul have in common: their operands as kernels bind them, and the epilogue
//! (`shaders/wgsl/matmul/epilogue.wgsl`).

use super::window::{Extents, Window};
use crate::launch::Place;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{
    Activation, GatedKind, GatedMatMul, Granularity, GroupedMatMul, MatMul, Op, Policy, Tensor2,
};
use perjoule_kernels::{DType, Matrix};
use std::ops::Range;

/// `Epilogue` of `matmul/epilogue.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct EpilogueParam {
    c_batch: u32,
    c_row: u32,
    c_col: u32,
    residual_batch: u32,
    residual_row: u32,
    residual_col: u32,
    bias_batch: u32,
    activation: u32,
    a_scale_batch: u32,
    a_scale_row: u32,
    b_scale_batch: u32,
    b_scale_col: u32,
    a_group: u32,
    b_group: u32,
    scale: f32,
    gate: u32,
    alpha: f32,
    limit: f32,
    unused: [u32; 2],
}

/// Scales of one side, in elements of their operand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scales {
    /// From one matrix to the next.
    pub(crate) batch: usize,
    /// From one row of A, or column of B, to the next; 0 where they share one.
    pub(crate) vector: usize,
    /// Scales of a vector.
    pub(crate) each: usize,
    /// Elements of k under one scale.
    pub(crate) group: usize,
    /// Whether they vary along k.
    pub(crate) grouped: bool,
}

impl Scales {
    fn of(granularity: Granularity, vectors: usize, k: usize) -> Self {
        match granularity {
            Granularity::Tensor => Scales { batch: 1, vector: 0, each: 1, group: k.max(1), grouped: false },
            Granularity::Vector => {
                Scales { batch: vectors, vector: 1, each: 1, group: k.max(1), grouped: false }
            }
            Granularity::Group(group) => {
                let each = k.div_ceil(group);
                Scales { batch: vectors.saturating_mul(each), vector: each, each, group, grouped: true }
            }
        }
    }
}

/// The experts of a grouped product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grouped {
    /// Capacity of sorted positions.
    pub(crate) positions: usize,
    /// Rows of A.
    pub(crate) a_rows: usize,
    /// Values of `order` that read one row of A.
    pub(crate) a_divisor: usize,
}

/// Where operands lie in the op's list; `None` where it has no such operand.
#[derive(Debug, Clone, Copy, Default)]
struct Places {
    up: Option<usize>,
    a_scale: Option<usize>,
    b_scale: Option<usize>,
    bias: Option<usize>,
    up_bias: Option<usize>,
    residual: Option<usize>,
    c: usize,
}

/// A product of any of the three ops.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// Matrices: the batch, or the experts.
    pub(crate) matrices: usize,
    /// Rows of A and C; of C alone in a grouped product.
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Tensor2,
    pub(crate) b: Tensor2,
    /// B of the up projection, of b's type.
    pub(crate) up: Option<Matrix>,
    pub(crate) c: Tensor2,
    pub(crate) a_scale: Option<Scales>,
    pub(crate) b_scale: Option<Scales>,
    pub(crate) bias: Option<DType>,
    pub(crate) up_bias: Option<DType>,
    pub(crate) residual: Option<Tensor2>,
    pub(crate) policy: Policy,
    pub(crate) grouped: Option<Grouped>,
    scale: f32,
    activation: Activation,
    gate: Option<GatedKind>,
    places: Places,
}

impl Form {
    /// That of a product; `None` for other ops.
    pub(crate) fn of(op: &Op) -> Option<Self> {
        let form = match op {
            Op::MatMul(m) => Self::of_matmul(m),
            Op::GatedMatMul(g) => Self::of_gated(g),
            Op::GroupedMatMul(g) => Self::of_grouped(g),
            _ => return None,
        };
        let mut places = Places::default();
        for (index, operand) in op.operands().iter().enumerate() {
            match operand.name {
                "up_b" => places.up = Some(index),
                "a_scale" => places.a_scale = Some(index),
                "b_scale" => places.b_scale = Some(index),
                "bias" | "gate_bias" => places.bias = Some(index),
                "up_bias" => places.up_bias = Some(index),
                "residual" => places.residual = Some(index),
                "c" | "out" => places.c = index,
                _ => {}
            }
        }
        Some(Form { places, ..form })
    }

    fn of_matmul(m: &MatMul) -> Self {
        Form {
            matrices: m.batch,
            m: m.m,
            n: m.n,
            k: m.k,
            a: m.a,
            b: m.b,
            up: None,
            c: m.c,
            a_scale: m.a_scale.map(|g| Scales::of(g, m.m, m.k)),
            b_scale: m.b_scale.map(|g| Scales::of(g, m.n, m.k)),
            bias: m.epilogue.bias,
            up_bias: None,
            residual: m.epilogue.residual,
            policy: m.policy,
            grouped: None,
            scale: m.epilogue.scale,
            activation: m.epilogue.activation,
            gate: None,
            places: Places::default(),
        }
    }

    fn of_gated(g: &GatedMatMul) -> Self {
        let c = Matrix { row: g.gated.out.outer_stride, col: 1, batch: 0 };
        Form {
            up: Some(g.up.b.strides),
            c: Tensor2 { dtype: g.gated.out_dtype, strides: c },
            up_bias: g.up.epilogue.bias,
            gate: Some(g.gated.kind),
            ..Self::of_matmul(&g.gate)
        }
    }

    fn of_grouped(g: &GroupedMatMul) -> Self {
        let one = |t: Tensor2| Tensor2 { strides: Matrix { batch: 0, ..t.strides }, ..t };
        Form {
            matrices: g.experts,
            m: g.c_rows,
            n: g.n,
            k: g.k,
            a: one(g.a),
            b: g.b,
            up: None,
            c: one(g.c),
            a_scale: None,
            b_scale: None,
            bias: g.bias,
            up_bias: None,
            residual: None,
            policy: g.policy,
            grouped: Some(Grouped { positions: g.rows, a_rows: g.a_rows, a_divisor: g.a_divisor }),
            scale: 1.0,
            activation: g.activation,
            gate: None,
            places: Places::default(),
        }
    }

    /// Whether products are those of integers, summed as i32: of i8 without scales along k.
    pub(crate) fn integers(&self) -> bool {
        self.a.dtype == DType::I8 && !self.scales_along_k()
    }

    /// Whether scales vary along k.
    pub(crate) fn scales_along_k(&self) -> bool {
        [self.a_scale, self.b_scale].into_iter().flatten().any(|scales| scales.grouped)
    }

    /// Whether C is f32, contiguous along its columns, and nothing but the product.
    pub(crate) fn is_plain(&self) -> bool {
        let scaled = self.scale != 1.0 || self.a_scale.is_some() || self.b_scale.is_some();
        let changed = self.bias.is_some() || self.residual.is_some() || self.activation != Activation::None;
        let whole = self.up.is_none() && self.grouped.is_none();
        whole && !scaled && !changed && self.c.dtype == DType::F32 && self.c.strides.col == 1
    }

    /// Rows of A that multiply one matrix of B: of an expert, on average.
    pub(crate) fn rows(&self) -> usize {
        self.grouped.map_or(self.m, |g| g.positions.div_ceil(self.matrices.max(1)))
    }

    /// Bindings of what A and B are read from, by element: a, b, and those present of up, segments (the op's `offsets`) and order.
    /// Kernels that read them otherwise change these.
    pub(crate) fn inputs(&self) -> Vec<Binding> {
        let grouped = self.grouped.is_some();
        vec![
            Binding::get("a", self.a.dtype),
            Binding::get("b", self.b.dtype),
            Binding::get("up", self.b.dtype).when(self.up.is_some()),
            Binding::get("segments", DType::I32).when(grouped),
            Binding::get("order", DType::I32).when(grouped),
        ]
    }

    /// Bindings of the epilogue, which follow those of the kernel.
    pub(crate) fn epilogue_bindings(&self) -> Vec<Binding> {
        let of = |dtype: Option<DType>| dtype.unwrap_or(DType::F32);
        vec![
            Binding::get("a_scale", DType::F32).when(self.a_scale.is_some()),
            Binding::get("b_scale", DType::F32).when(self.b_scale.is_some()),
            Binding::get("bias", of(self.bias)).when(self.bias.is_some()),
            Binding::get("up_bias", of(self.up_bias)).when(self.up_bias.is_some()),
            Binding::get("residual", of(self.residual.map(|r| r.dtype))).when(self.residual.is_some()),
            Binding::set("c", self.c.dtype),
        ]
    }

    /// The variant of a kernel with these inputs: what `matmul/epilogue.wgsl` needs, and whether the product is gated or grouped.
    pub(crate) fn variant(&self, mut inputs: Vec<Binding>) -> Variant {
        inputs.extend(self.epilogue_bindings());
        let grouped = |scales: Option<Scales>, grouped| scales.is_some_and(|s| s.grouped == grouped);
        Variant::of(inputs)
            .alias("Sum", if self.integers() { "i32" } else { "f32" })
            .flag("C_INTEGER", self.c.dtype == DType::I32)
            .flag("A_SCALE_UNIFORM", grouped(self.a_scale, false))
            .flag("A_SCALE_GROUPS", grouped(self.a_scale, true))
            .flag("B_SCALE_UNIFORM", grouped(self.b_scale, false))
            .flag("B_SCALE_GROUPS", grouped(self.b_scale, true))
            .flag("GATED", self.up.is_some())
            .flag("GROUPED", self.grouped.is_some())
    }

    /// `Epilogue` of the kernel's `Params`: the same for every window.
    pub(crate) fn epilogue(&self) -> EpilogueParam {
        let residual = self.residual.map_or(Matrix { row: 0, col: 0, batch: 0 }, |r| r.strides);
        let (gate, alpha, limit) = match self.gate {
            None | Some(GatedKind::SwiGlu) => (0, 0.0, 0.0),
            Some(GatedKind::GeGlu) => (1, 0.0, 0.0),
            Some(GatedKind::GeGluTanh) => (2, 0.0, 0.0),
            Some(GatedKind::GptOss { alpha, limit }) => (3, alpha, limit),
        };
        let activation = match self.activation {
            Activation::None => 0,
            Activation::Silu => 1,
            Activation::Gelu => 2,
            Activation::GeluTanh => 3,
        };
        let of = |scales: Option<Scales>| scales.map_or([0, 0, 1], |s| [s.batch, s.vector, s.group]);
        let ([a_batch, a_vector, a_group], [b_batch, b_vector, b_group]) =
            (of(self.a_scale), of(self.b_scale));
        // groups that end behind k are no larger than what 32 bits count
        let group = |group: usize| group.min(self.k.max(1)) as u32;
        EpilogueParam {
            c_batch: self.c.strides.batch as u32,
            c_row: self.c.strides.row as u32,
            c_col: self.c.strides.col as u32,
            residual_batch: residual.batch as u32,
            residual_row: residual.row as u32,
            residual_col: residual.col as u32,
            bias_batch: self.bias_batch() as u32,
            activation,
            a_scale_batch: a_batch as u32,
            a_scale_row: a_vector as u32,
            b_scale_batch: b_batch as u32,
            b_scale_col: b_vector as u32,
            a_group: group(a_group),
            b_group: group(b_group),
            scale: self.scale,
            gate,
            alpha,
            limit,
            unused: [0; 2],
        }
    }

    fn bias_batch(&self) -> usize {
        if self.grouped.is_some() { self.n } else { 0 }
    }

    /// Every operand: its index in the op's list, and what of it a window touches. In the order of the bindings.
    pub(super) fn extents(&self) -> Vec<Extents> {
        // elements from the first to the last of `count` that are `stride` apart
        let line = |count: usize, stride: usize| match count {
            0 => 0,
            _ => (count - 1).saturating_mul(stride).saturating_add(1),
        };
        let columns = |b: Matrix| Extents {
            batch: b.batch,
            col: b.col,
            len: line(self.k, b.row),
            ..Extents::of(self.b.dtype)
        };
        let both = |t: Tensor2| Extents {
            batch: t.strides.batch,
            row: t.strides.row,
            col: t.strides.col,
            ..Extents::of(t.dtype)
        };
        let scales = |s: Scales| Extents { batch: s.batch, len: s.each, ..Extents::of(DType::F32) };
        let place = &self.places;
        let a = Extents { col: 0, len: line(self.k, self.a.strides.col), ..both(self.a) };
        let (a, c) = match self.grouped {
            None => (a, both(self.c)),
            // rows of any number
            Some(g) => {
                let whole = |rows: usize, stride: usize, one: usize| match rows.min(one) {
                    0 => 0,
                    _ => line(rows, stride).saturating_add(one - 1),
                };
                let a_len = whole(g.a_rows, self.a.strides.row, a.len);
                let c_len = whole(self.m, self.c.strides.row, 1);
                (Extents { row: 0, len: a_len, ..a }, Extents { row: 0, len: c_len, ..both(self.c) })
            }
        };
        let mut list = vec![(0, a), (1, columns(self.b.strides))];
        list.extend(place.up.zip(self.up).map(|(at, up)| (at, columns(up))));
        if let Some(g) = self.grouped {
            let slots = |count: usize| Extents { len: count, ..Extents::of(DType::I32) };
            list.extend([(2, slots(self.matrices + 1)), (3, slots(g.positions))]);
        }
        let side = |at: Option<usize>, scales_of: Option<Scales>, is_a: bool| {
            at.zip(scales_of).map(|(at, s)| match is_a {
                true => (at, Extents { row: s.vector, ..scales(s) }),
                false => (at, Extents { col: s.vector, ..scales(s) }),
            })
        };
        list.extend(side(place.a_scale, self.a_scale, true));
        list.extend(side(place.b_scale, self.b_scale, false));
        let bias = |dtype| Extents { batch: self.bias_batch(), col: 1, ..Extents::of(dtype) };
        list.extend(place.bias.zip(self.bias).map(|(at, dtype)| (at, bias(dtype))));
        list.extend(place.up_bias.zip(self.up_bias).map(|(at, dtype)| (at, bias(dtype))));
        list.extend(place.residual.zip(self.residual).map(|(at, r)| (at, both(r))));
        list.push((place.c, c));
        list.into_iter().map(|(operand, extents)| Extents { operand, ..extents }).collect()
    }

    /// Where B of a window begins, in bytes from the operand's beginning; modulo 2^32.
    pub(crate) fn b_starts_at(&self, window: &Window) -> u32 {
        let b = self.extents().into_iter().find(|extents| extents.operand == 1);
        b.map_or(0, |b| b.part(window).0 as u32)
    }

    /// What a kernel binds for a window, in the order of `inputs` and `epilogue_bindings`.
    pub(crate) fn places(&self, window: &Window) -> Vec<Place> {
        let whole = Window::whole(self);
        let place = |extents: &Extents| match *window == whole {
            true => Place::Operand(extents.operand),
            false => {
                let (at, bytes) = extents.part(window);
                Place::Part(extents.operand, at, bytes)
            }
        };
        self.extents().iter().map(place).collect()
    }
}

/// How many a range has, as a kernel's number.
pub(crate) fn count(range: &Range<usize>) -> u32 {
    range.len() as u32
}
