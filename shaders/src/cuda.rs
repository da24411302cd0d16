//! Sources in CUDA C++, compiled by NVRTC at first use. Headers are given to the compiler by the part of their path behind `cuda/`.

use crate::{Source, sources};

sources! {
    /// What kernels include.
    HEADERS:
    /// Logits in order.
    ORDER = "cuda/argmax/common.cuh";
    /// Masks of attention, and a row by its definition.
    ATTENTION_COMMON = "cuda/attention/common.cuh";
    /// Fragments of mma.sync.
    ATTENTION_FRAGMENTS = "cuda/attention/fragments.cuh";
    /// Tiles of rows, and parts of rows put together.
    ATTENTION_PARTS = "cuda/attention/parts.cuh";
    /// What attention by mma.sync shares.
    ATTENTION_WARP = "cuda/attention/warp.cuh";
    /// Products of a warpgroup whose left operand may be in registers.
    ATTENTION_PRODUCTS = "cuda/attention/products.cuh";
    /// Reductions of warps and blocks.
    BLOCK = "cuda/common/block.cuh";
    /// Elements of every type.
    ELEMENT = "cuda/common/element.cuh";
    /// Transaction barriers, tensor copies, clusters.
    HOPPER = "cuda/common/hopper.cuh";
    /// Where vectors and caches lie.
    LAYOUT = "cuda/common/layout.cuh";
    /// Functions of f32.
    MATH = "cuda/common/math.cuh";
    /// Gates of pairs of products, granularity of scales.
    PRODUCT = "cuda/common/product.cuh";
    /// Slots of any content, cut to what they may be.
    SLOTS = "cuda/common/slots.cuh";
    /// How element-wise kernels share vectors out.
    TILE = "cuda/common/tile.cuh";
    /// Products of a warpgroup.
    WGMMA = "cuda/common/wgmma.cuh";
    /// Writing into KV caches.
    CACHE = "cuda/kv_append/cache.cuh";
    /// What the products for Hopper share.
    MATMUL_HOPPER_COMMON = "cuda/matmul/hopper.cuh";
    /// Fragments of weights times activations.
    MATMUL_MULTIPLY = "cuda/matmul/multiply.cuh";
    /// Weights as registers and fragments.
    MATMUL_SKINNY_WEIGHTS = "cuda/matmul/skinny.cuh";
    /// What the kernels of norms share.
    NORM_COMMON = "cuda/norm/common.cuh";
    /// What the kernels of the fused norm, rotation and append share.
    QK_COMMON = "cuda/qk_norm_rope_append/common.cuh";
    /// What kernels share that quantise with scales beside the codes.
    QUANTISE_COMMON = "cuda/quantise/common.cuh";
    /// What kernels that rotate share.
    ROPE_COMMON = "cuda/rope/common.cuh";
    /// What the kernels of softmax share.
    SOFTMAX_COMMON = "cuda/softmax/common.cuh";
}

sources! {
    /// Files that are compiled.
    SOURCES:
    /// Addition.
    ADD_ROWS = "cuda/add/rows.cu";
    /// Lengths and positions of a step.
    ADVANCE_SLOTS = "cuda/advance/slots.cu";
    /// The largest element.
    ARGMAX_PARTS = "cuda/argmax/parts.cu";
    /// Attention of few queries on Hopper.
    ATTENTION_DECODE_SM90 = "cuda/attention/decode_sm90.cu";
    /// Attention of every form.
    ATTENTION_GENERIC = "cuda/attention/generic.cu";
    /// Attention by mma.sync, keys split over blocks.
    ATTENTION_MMA = "cuda/attention/mma.cu";
    /// Attention of many queries on Hopper.
    ATTENTION_PREFILL_SM90 = "cuda/attention/prefill_sm90.cu";
    /// Conversions.
    CAST_ROWS = "cuda/cast/rows.cu";
    /// Arithmetic driven to its limit.
    CEILING_ARITHMETIC = "cuda/ceiling/arithmetic.cu";
    /// Memory driven to its limit.
    CEILING_MEMORY = "cuda/ceiling/memory.cu";
    /// Sums of experts' results.
    COMBINE_ROWS = "cuda/combine/rows.cu";
    /// Copies.
    COPY_BYTES = "cuda/copy/bytes.cu";
    /// Rows of a table.
    EMBED_ROWS = "cuda/embed/rows.cu";
    /// Gated activations.
    GATED_ROWS = "cuda/gated/rows.cu";
    /// Products of experts for Hopper.
    GROUPED_MATMUL_HOPPER = "cuda/grouped_matmul/hopper.cu";
    /// Keys and values into caches.
    KV_APPEND_ROWS = "cuda/kv_append/rows.cu";
    /// Products of everything that the ops allow.
    MATMUL_ANY = "cuda/matmul/any.cu";
    /// Matrix products of f32 by fused multiply-adds.
    MATMUL_FMA = "cuda/matmul/fma.cu";
    /// Matrix products for Hopper.
    MATMUL_HOPPER = "cuda/matmul/hopper.cu";
    /// Products of many rows with packed weights of block formats.
    MATMUL_PANELS = "cuda/matmul/panels.cu";
    /// Activations rounded to bf16.
    MATMUL_ROUND = "cuda/matmul/round.cu";
    /// Products of few rows with weights.
    MATMUL_SKINNY = "cuda/matmul/skinny.cu";
    /// Matrix products by mma.sync.
    MATMUL_TENSOR = "cuda/matmul/tensor.cu";
    /// Norms, a vector in the registers of a block.
    NORM_REGISTERS = "cuda/norm/registers.cu";
    /// Norms of any vectors.
    NORM_ROWS = "cuda/norm/rows.cu";
    /// Block formats in panels of 16 columns.
    PACK_PANELS = "cuda/pack/panels.cu";
    /// Norm, rotation and append of any heads.
    QK_HEADS = "cuda/qk_norm_rope_append/heads.cu";
    /// Norm, rotation and append, a head in the registers of a few lanes.
    QK_REGISTERS = "cuda/qk_norm_rope_append/registers.cu";
    /// Quantising to block formats.
    QUANTISE_BLOCKS = "cuda/quantise/blocks.cu";
    /// Quantising with scales, a group in the registers of a block.
    QUANTISE_RUNS = "cuda/quantise/runs.cu";
    /// Quantising with scales beside the codes.
    QUANTISE_SCALES = "cuda/quantise/scales.cu";
    /// Rotary positions.
    ROPE_PAIRS = "cuda/rope/pairs.cu";
    /// Choice of experts.
    ROUTE_EXPERTS = "cuda/route/experts.cu";
    /// Sampling.
    SAMPLE_SELECT = "cuda/sample/select.cu";
    /// Softmax, a vector in the registers of a block.
    SOFTMAX_REGISTERS = "cuda/softmax/registers.cu";
    /// Softmax of any vectors.
    SOFTMAX_ROWS = "cuda/softmax/rows.cu";
}
