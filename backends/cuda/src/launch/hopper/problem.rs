//! The ops as the kernel sees them: C row-major, every operand in lines that the copy engine can walk.

use super::map::Lines;
use super::round::{self, rounds};
use perjoule_kernels::op::{Activation, GatedKind, GatedMatMul, Granularity, MatMul, Op, Tensor2};
use perjoule_kernels::{DType, Matrix, Reason};

/// A product, or two with a gate between them.
///
/// A product whose C is column-major is turned round: `C^T = B^T A^T`, so that m and n, A and B, and their scales change places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Problem {
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Element type of A and B.
    pub(super) element: DType,
    pub(super) out: DType,
    pub(super) a: Matrix,
    /// The op's A where it is rounded into scratch, which `a` (or `b`, turned round) then describes.
    pub(super) rounds: Option<Tensor2>,
    pub(super) b: Matrix,
    /// The other B of a gated product.
    b_up: Matrix,
    c: Matrix,
    /// Whether A is contiguous along m rather than along k, and B along n.
    pub(super) a_mn: bool,
    pub(super) b_mn: bool,
    /// Whether it was turned round; the bias then goes along m.
    pub(super) swapped: bool,
    pub(super) a_scale: Option<Granularity>,
    pub(super) b_scale: Option<Granularity>,
    pub(super) scale: f32,
    pub(super) bias: Option<DType>,
    pub(super) activation: Activation,
    pub(super) residual: Option<Tensor2>,
    pub(super) gate: Option<Gate>,
}

/// A gated activation: its kind in the order of declaration, and the parameters of the last kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    pub(super) kind: u32,
    pub(super) alpha: f32,
    pub(super) limit: f32,
}

/// Places of the operands in the op's order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) b_up: Option<usize>,
    pub(super) a_scale: Option<usize>,
    pub(super) b_scale: Option<usize>,
    pub(super) bias: Option<usize>,
    pub(super) up_bias: Option<usize>,
    pub(super) residual: Option<usize>,
    pub(super) c: usize,
}

/// Strides of A rounded into scratch.
fn rounded(op: &MatMul) -> Matrix {
    let row = round::row(op.k);
    let batch = if op.a.strides.batch == 0 { 0 } else { op.m.wrapping_mul(row) };
    Matrix { row, col: 1, batch }
}

/// Sizes are counted in i32, with room for a tile beyond the last one.
const MOST: usize = i32::MAX as usize - 1024;

impl Problem {
    /// What the kernel makes of an op, or why it does not run it.
    pub(super) fn of(op: &Op) -> Result<Self, Reason> {
        match op {
            Op::MatMul(op) => Self::product(op)?.checked(),
            Op::GatedMatMul(op) => Self::gated(op)?.checked(),
            _ => Err(Reason::new("runs products of matrices")),
        }
    }

    fn product(op: &MatMul) -> Result<Self, Reason> {
        let element = op.b.dtype;
        let rounds = rounds(op.a.dtype, element, op.policy);
        if op.a.dtype != element && !rounds {
            return Err(Reason::new(
                "multiplies elements of one type, or f32 rounded to bf16 where the policy allows it",
            ));
        }
        if element == DType::F32 && !op.policy.tf32 {
            return Err(Reason::new("rounds f32 to tf32, which the policy does not allow"));
        }
        let grouped = |scale| matches!(scale, Some(Granularity::Group(_)));
        if grouped(op.a_scale) || grouped(op.b_scale) {
            return Err(Reason::new("takes scales of whole rows, columns and matrices"));
        }
        let straight = Problem {
            batch: op.batch,
            m: op.m,
            n: op.n,
            k: op.k,
            element,
            out: op.c.dtype,
            a: if rounds { rounded(op) } else { op.a.strides },
            rounds: rounds.then_some(op.a),
            b: op.b.strides,
            b_up: op.b.strides,
            c: op.c.strides,
            a_mn: false,
            b_mn: false,
            swapped: false,
            a_scale: op.a_scale,
            b_scale: op.b_scale,
            scale: op.epilogue.scale,
            bias: op.epilogue.bias,
            activation: op.epilogue.activation,
            residual: op.epilogue.residual,
            gate: None,
        };
        if rounds && op.a.strides.col != 1 && op.k > 1 {
            return Err(Reason::new("rounds contiguous rows"));
        }
        // rows of one element, and a single row, are both
        let row_major = op.c.strides.col == 1 || op.n == 1;
        Ok(if row_major { straight } else { straight.turned() })
    }

    fn gated(op: &GatedMatMul) -> Result<Self, Reason> {
        let product =
            MatMul { c: Tensor2 { dtype: op.gated.out_dtype, strides: op.gate.c.strides }, ..op.gate };
        let (kind, alpha, limit) = match op.gated.kind {
            GatedKind::SwiGlu => (0, 0.0, 0.0),
            GatedKind::GeGlu => (1, 0.0, 0.0),
            GatedKind::GeGluTanh => (2, 0.0, 0.0),
            GatedKind::GptOss { alpha, limit } => (3, alpha, limit),
        };
        if op.gate.epilogue.bias != op.up.epilogue.bias {
            return Err(Reason::new("adds two biases of one type, or none"));
        }
        let out = op.gated.out;
        let c = Matrix { row: out.outer_stride, col: 1, batch: 0 };
        if out.inner != 1 {
            return Err(Reason::new("writes whole rows"));
        }
        // C is what is stored, whatever the strides of the gates that are not
        let base = Self::product(&MatMul { c: Tensor2 { dtype: product.c.dtype, strides: c }, ..product })?;
        Ok(Problem { b_up: op.up.b.strides, gate: Some(Gate { kind, alpha, limit }), ..base })
    }

    fn turned(self) -> Self {
        let turn = |r: Tensor2| Tensor2 { strides: r.strides.transposed(), ..r };
        Problem {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            b_up: self.a.transposed(),
            c: self.c.transposed(),
            swapped: true,
            a_scale: self.b_scale,
            b_scale: self.a_scale,
            residual: self.residual.map(turn),
            ..self
        }
    }

    fn checked(mut self) -> Result<Self, Reason> {
        let sizes = [self.batch, self.m, self.n, self.k];
        let all = sizes.iter().try_fold(1usize, |all, &size| all.checked_mul(size.max(1)));
        if sizes.iter().any(|size| !(1..=MOST).contains(size)) || all.is_none() {
            return Err(Reason::new("takes sizes of 1 to 2^31 - 1025"));
        }
        let out = match self.element {
            DType::I8 => matches!(self.out, DType::I32 | DType::F32 | DType::F16 | DType::BF16),
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => {
                matches!(self.out, DType::F32 | DType::F16 | DType::BF16)
            }
            _ => return Err(Reason::new("multiplies bf16, f16, f32, f8e4m3 or i8")),
        };
        if !out {
            return Err(Reason::new("writes f32, f16, bf16, and i32 of i8"));
        }
        let wide = self.element.block_bytes() == 2;
        let contiguous = |inner: usize, stride: usize| stride == 1 || inner == 1;
        self.a_mn = !contiguous(self.k, self.a.col);
        self.b_mn = !contiguous(self.k, self.b.row);
        let along_m = contiguous(self.m, self.a.row);
        let along_n = contiguous(self.n, self.b.col) && contiguous(self.n, self.b_up.col);
        if self.gate.is_some() && self.b_mn == contiguous(self.k, self.b_up.row) && self.k > 1 {
            return Err(Reason::new("reads both B in one layout"));
        }
        if (self.a_mn && !(wide && along_m)) || (self.b_mn && !(wide && along_n)) {
            return Err(Reason::new(
                "reads operands that are contiguous along k, or of 16 bits along m or n",
            ));
        }
        if !contiguous(self.n, self.c.col) {
            return Err(Reason::new("writes contiguous rows or columns"));
        }
        if self.residual.is_some_and(|r| !contiguous(self.n, r.strides.col)) {
            return Err(Reason::new("adds a residual that lies as C does"));
        }
        let lines = [self.a_lines(64), self.b_lines(false, 64), self.b_lines(true, 64), self.c_lines()];
        if !self.c_lines().ends_fit() {
            return Err(Reason::new("writes rows of whole 16 bytes"));
        }
        if lines.iter().any(|lines| !lines.fits()) {
            return Err(Reason::new("needs strides that are multiples of 16 bytes"));
        }
        Ok(self)
    }

    fn lines(
        &self,
        strides: Matrix,
        mn: bool,
        extent: usize,
        along_k: usize,
        along: usize,
        side: usize,
    ) -> Lines {
        let (len, lines, stride) = if mn { (extent, self.k, along_k) } else { (self.k, extent, along) };
        // where the contiguous direction is that of m or n, boxes are 64 elements of one slice of k
        let box_lines = if mn { 128 / self.element.block_bytes() } else { side };
        Lines {
            dtype: self.element,
            tf32: true,
            len,
            lines,
            stride,
            batch: self.batch,
            batch_stride: strides.batch,
            box_lines,
        }
    }

    /// Rows and matrices of the op's A, where it is rounded.
    pub(super) fn rounded_rows(&self) -> (usize, usize) {
        let (rows, strides) = if self.swapped { (self.n, self.b) } else { (self.m, self.a) };
        (rows, if strides.batch == 0 { 1 } else { self.batch })
    }

    /// A, in boxes of `side` rows.
    pub(super) fn a_lines(&self, side: usize) -> Lines {
        self.lines(self.a, self.a_mn, self.m, self.a.col, self.a.row, side)
    }

    /// B, or the other B of a gated product, in boxes of `side` columns.
    pub(super) fn b_lines(&self, up: bool, side: usize) -> Lines {
        let b = if up { self.b_up } else { self.b };
        self.lines(b, self.b_mn, self.n, b.row, b.col, side)
    }

    /// C, in the boxes of a warp.
    pub(super) fn c_lines(&self) -> Lines {
        Lines {
            dtype: self.out,
            tf32: false,
            len: self.n,
            lines: self.m,
            stride: self.c.row,
            batch: self.batch,
            batch_stride: self.c.batch,
            box_lines: 16,
        }
    }

    /// Where the op has its operands.
    pub(super) fn operands(&self) -> Operands {
        let mut next = if self.gate.is_some() { 3 } else { 2 };
        let mut take = |present: bool| {
            present.then(|| {
                next += 1;
                next - 1
            })
        };
        // the op's own A and B have their scales in this order
        let (first, second) =
            if self.swapped { (self.b_scale, self.a_scale) } else { (self.a_scale, self.b_scale) };
        let first = take(first.is_some());
        let second = take(second.is_some());
        let bias = take(self.bias.is_some());
        let up_bias = take(self.bias.is_some() && self.gate.is_some());
        let residual = take(self.residual.is_some());
        let (a, b, a_scale, b_scale) =
            if self.swapped { (1, 0, second, first) } else { (0, 1, first, second) };
        let b_up = self.gate.is_some().then_some(2);
        Operands { a, b, b_up, a_scale, b_scale, bias, up_bias, residual, c: next }
    }
}
