//! Packing weights of block formats into panels of 16 columns, which `shaders/cuda/matmul/skinny.cu` reads. The layout is described in
//! `shaders/cuda/pack/panels.cu`.

use super::{Body, Call, Dims, launch, module, param};
use crate::compile::Function;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, DType, Error, Launch, PackFormat, Reason, Request, Result};
use perjoule_shaders::cuda::PACK_PANELS;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;

/// Elements of k and bytes of a step of a panel.
pub(crate) const fn step(dtype: DType) -> (usize, usize) {
    let len = if dtype.block_len() == 256 { 256 } else { 128 };
    (len, PANEL * len / dtype.block_len() * dtype.block_bytes())
}

/// A format for each block format.
macro_rules! panels {
    ($($panels:ident $name:literal $dtype:ident;)*) => {
        $(
            /// Panels of
            #[doc = stringify!($dtype)]
            pub(crate) static $panels: PackFormat = PackFormat {
                name: $name,
                dtype: DType::I8,
                panel: PANEL,
                panel_bytes: |k| {
                    let (len, bytes) = step(DType::$dtype);
                    (k.div_ceil(len) as u64).checked_mul(bytes as u64)
                },
            };
        )*
        static FORMATS: &[(&PackFormat, DType)] = &[$((&$panels, DType::$dtype)),*];
    };
}

panels! {
    PANELS16_Q8_0 "panels16_q8_0" Q8_0;
    PANELS16_Q4_0 "panels16_q4_0" Q4_0;
    PANELS16_Q4_K "panels16_q4_k" Q4K;
    PANELS16_Q6_K "panels16_q6_k" Q6K;
    PANELS16_MXFP4 "panels16_mxfp4" MxFp4;
}

pub(crate) fn reject(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Pack(op) = candidate.op else { return Some(Reason::new("runs pack")) };
    let found = FORMATS.iter().find(|(format, _)| *format == op.format);
    let Some((_, dtype)) = found else {
        return Some(Reason::new(format!("does not know the format {}", op.format.name)));
    };
    (op.b.dtype != *dtype).then(|| Reason::new(format!("packs {} from {dtype} only", op.format.name)))
}

pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    3e-6 + candidate.op.bytes() as f32 / 2e11
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    column: i64,
    matrix: i64,
    panel: i64,
    matrices: i64,
    n: i64,
    k: i64,
    dtype: u32,
    pad: u32,
}

struct Panels {
    function: Function,
    params: Params,
    blocks: u32,
}

const THREADS: u64 = 256;

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Pack(op) = request.op else {
        return Err(Error::Unsupported { what: "this op", why: "the row runs pack".into() });
    };
    let dtype = op.b.dtype;
    let bytes = |elements: usize| (elements / dtype.block_len() * dtype.block_bytes()) as i64;
    let panel = (op.format.panel_bytes)(op.k).unwrap_or(0);
    let params = Params {
        column: bytes(op.b.strides.col),
        matrix: bytes(op.b.strides.batch),
        panel: panel as i64,
        matrices: op.matrices as i64,
        n: op.n as i64,
        k: op.k as i64,
        dtype: dtype as u32,
        pad: 0,
    };
    // the kernel strides over what the grid does not reach
    let blocks = (op.packed_bytes().unwrap_or(0) / 4).div_ceil(THREADS).min(1 << 20) as u32;
    let function = module(request, &PACK_PANELS, &[])?.function("pack_panels")?;
    launch(Panels { function, params, blocks })
}

impl Body for Panels {
    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let (b, packed) = (call.operand(0), call.operand(1));
        let dims = Dims::line(self.blocks, THREADS as u32);
        call.start(&self.function, dims, &[param(&self.params), param(&b), param(&packed)])
    }
}
