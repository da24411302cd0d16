//! Sources in WGSL. A module is a prelude that the backend writes, headers, and one source: WGSL has no includes.

use crate::{Source, sources};

sources! {
    /// What kernels stand behind.
    HEADERS:
    /// Elements of every type.
    ELEMENT = "wgsl/common/element.wgsl";
    /// Where vectors and caches lie.
    LAYOUT = "wgsl/common/layout.wgsl";
    /// Functions of f32.
    MATH = "wgsl/common/math.wgsl";
    /// From a sum of products to an element of C.
    MATMUL_EPILOGUE = "wgsl/matmul/epilogue.wgsl";
    /// Products on processors: a row of sums.
    DIRECT_ROW = "wgsl/matmul/direct/row.wgsl";
    /// Products on processors: rows of A by subgroups.
    DIRECT_BROADCAST = "wgsl/matmul/direct/broadcast.wgsl";
    /// Products on processors: rows of A that every lane reads.
    DIRECT_UNIFORM = "wgsl/matmul/direct/uniform.wgsl";
    /// Which tile a workgroup has.
    MATMUL_TILES = "wgsl/matmul/tiles.wgsl";
    /// Which matrix and rows the tile of a workgroup has.
    MATMUL_MATRICES = "wgsl/matmul/matrices.wgsl";
    /// Which expert and rows.
    MATMUL_EXPERTS = "wgsl/matmul/experts.wgsl";
    /// Few rows of A: what a workgroup does, whatever the types.
    GEMV_BODY = "wgsl/matmul/gemv/body.wgsl";
    /// Words of one weight.
    GEMV_ONE = "wgsl/matmul/gemv/one.wgsl";
    /// Words of a gate's weight and of an up projection's.
    GEMV_PAIR = "wgsl/matmul/gemv/pair.wgsl";
    /// Units of weights in f32.
    GEMV_QUADS = "wgsl/matmul/gemv/quads.wgsl";
    /// Activations in f32.
    GEMV_A32 = "wgsl/matmul/gemv/a32.wgsl";
    /// Activations of 16 bits.
    GEMV_A16 = "wgsl/matmul/gemv/a16.wgsl";
    /// Weights of a float type.
    GEMV_PLAIN = "wgsl/matmul/gemv/plain.wgsl";
    /// Words at any byte.
    GEMV_BYTES = "wgsl/matmul/gemv/bytes.wgsl";
    /// Units of weights in block formats.
    GEMV_CODES = "wgsl/matmul/gemv/codes.wgsl";
    /// Weights in block formats, widened to f32.
    GEMV_WIDENED = "wgsl/matmul/gemv/widened.wgsl";
    /// Weights in block formats beside activations of 8 bits.
    GEMV_DOTS = "wgsl/matmul/gemv/dots.wgsl";
    /// Weights in blocks of 32.
    GEMV_BLOCKS = "wgsl/matmul/gemv/blocks.wgsl";
    /// Weights in q4_k.
    GEMV_Q4_K = "wgsl/matmul/gemv/q4_k.wgsl";
    /// Weights in q6_k.
    GEMV_Q6_K = "wgsl/matmul/gemv/q6_k.wgsl";
    /// Weights of i8 in the form of those in block formats.
    GEMV_I8_CODES = "wgsl/matmul/gemv/i8_codes.wgsl";
    /// Weights and activations of i8.
    GEMV_I8 = "wgsl/matmul/gemv/i8.wgsl";
    /// Slots as untrusted numbers.
    SLOTS = "wgsl/common/slots.wgsl";
    /// Angles of rotations.
    TURNS = "wgsl/common/turns.wgsl";
    /// Division that rounds as it should, and quantisation by it.
    DIVISION = "wgsl/common/division.wgsl";
    /// Norms of heads.
    QK_ROOT = "wgsl/qk_norm_rope_append/root.wgsl";
    /// What the kernels of attention share.
    ATTENTION_SLOTS = "wgsl/attention/slots.wgsl";
    /// Arithmetic as IEEE 754 has it.
    EXACT = "wgsl/common/exact.wgsl";
    /// Integers of 64 bits.
    WIDE = "wgsl/common/wide.wgsl";
    /// Values are elements.
    ONE = "wgsl/common/one.wgsl";
    /// Values are runs of four elements.
    FOUR = "wgsl/common/four.wgsl";
    /// Vectors split into values.
    PLACE = "wgsl/common/place.wgsl";
    /// Sums and maxima of a workgroup.
    REDUCE = "wgsl/common/reduce.wgsl";
    /// The same by shuffles within subgroups.
    REDUCE_SHUFFLES = "wgsl/common/reduce_shuffles.wgsl";
    /// Logits in order.
    ORDER = "wgsl/argmax/order.wgsl";
    /// The first element of a run.
    ARGMAX_FOUR = "wgsl/argmax/four.wgsl";
    /// Gated activations.
    GATED_FUNCTION = "wgsl/gated/function.wgsl";
    /// The same of an element.
    GATED_ONE = "wgsl/gated/one.wgsl";
    /// The same of a run.
    GATED_FOUR = "wgsl/gated/four.wgsl";
    /// What norms share.
    NORM_RANGE = "wgsl/norm/range.wgsl";
    /// Codes of block formats of 32 elements.
    QUANTISE_CODES = "wgsl/quantise/codes.wgsl";
    /// Elements under a scale.
    QUANTISE_SCALED = "wgsl/quantise/scaled.wgsl";
    /// The same of an element.
    QUANTISE_ONE = "wgsl/quantise/one.wgsl";
    /// The same of a run.
    QUANTISE_FOUR = "wgsl/quantise/four.wgsl";
    /// What sampling kernels share.
    SAMPLE_WEIGHTS = "wgsl/sample/weights.wgsl";
    /// What fast kernels of attention share.
    ATTENTION_SOFTMAX = "wgsl/attention/softmax.wgsl";
    /// Sums within subgroups.
    ATTENTION_SHUFFLES = "wgsl/attention/shuffles.wgsl";
    /// What stands for them elsewhere.
    ATTENTION_ALONE = "wgsl/attention/alone.wgsl";
}

sources! {
    /// Files with kernels.
    SOURCES:
    /// Addition.
    ADD_ROWS = "wgsl/add/rows.wgsl";
    /// Largest elements of parts of vectors.
    ARGMAX_PARTS = "wgsl/argmax/parts.wgsl";
    /// Those of whole vectors.
    ARGMAX_WHOLE = "wgsl/argmax/whole.wgsl";
    /// Largest elements.
    ARGMAX_ROWS = "wgsl/argmax/rows.wgsl";
    /// Conversion of 32-bit integers.
    CAST_INTEGERS = "wgsl/cast/integers.wgsl";
    /// Conversion.
    CAST_ROWS = "wgsl/cast/rows.wgsl";
    /// Sums of experts' results.
    COMBINE_ROWS = "wgsl/combine/rows.wgsl";
    /// Rows of tables.
    EMBED_ROWS = "wgsl/embed/rows.wgsl";
    /// Gated activations.
    GATED_ROWS = "wgsl/gated/rows.wgsl";
    /// Norms of vectors in registers.
    NORM_REGISTERS = "wgsl/norm/registers.wgsl";
    /// Norms of any vectors.
    NORM_ROWS = "wgsl/norm/rows.wgsl";
    /// Largest magnitudes of parts of a tensor.
    QUANTISE_LARGEST = "wgsl/quantise/largest.wgsl";
    /// To q4_k.
    QUANTISE_Q4_K = "wgsl/quantise/q4_k.wgsl";
    /// To q6_k.
    QUANTISE_Q6_K = "wgsl/quantise/q6_k.wgsl";
    /// To i8 and e4m3 with scales of groups in registers.
    QUANTISE_REGISTERS = "wgsl/quantise/registers.wgsl";
    /// To i8 and e4m3 with scales of groups.
    QUANTISE_SCALES = "wgsl/quantise/scales.wgsl";
    /// To block formats of 32 elements.
    QUANTISE_SMALL = "wgsl/quantise/small.wgsl";
    /// To block formats of 32 elements, by whole words.
    QUANTISE_WORDS = "wgsl/quantise/words.wgsl";
    /// To i8 and e4m3 with one scale.
    QUANTISE_TENSOR = "wgsl/quantise/tensor.wgsl";
    /// Choice of experts.
    ROUTE_EXPERTS = "wgsl/route/experts.wgsl";
    /// Choice of few experts.
    ROUTE_RANKS = "wgsl/route/ranks.wgsl";
    /// Few pairs sorted by expert.
    ROUTE_PLACES = "wgsl/route/places.wgsl";
    /// Pairs sorted by expert.
    ROUTE_SORT = "wgsl/route/sort.wgsl";
    /// Draws of tokens, by several workgroups a vector.
    SAMPLE_PARTS = "wgsl/sample/parts.wgsl";
    /// Draws of tokens.
    SAMPLE_ROWS = "wgsl/sample/rows.wgsl";
    /// Softmax of vectors in registers.
    SOFTMAX_REGISTERS = "wgsl/softmax/registers.wgsl";
    /// Softmax of any vectors.
    SOFTMAX_ROWS = "wgsl/softmax/rows.wgsl";
    /// Arithmetic at its limit.
    CEILING_ARITHMETIC = "wgsl/ceiling/arithmetic.wgsl";
    /// Memory at its limit.
    CEILING_MEMORY = "wgsl/ceiling/memory.wgsl";
    /// Lengths and positions of a step.
    ADVANCE_SLOTS = "wgsl/advance/slots.wgsl";
    /// Attention of every form.
    ATTENTION_ROWS = "wgsl/attention/rows.wgsl";
    /// Attention on CPUs.
    ATTENTION_LANES = "wgsl/attention/lanes.wgsl";
    /// Attention of many queries.
    ATTENTION_TILES = "wgsl/attention/tiles.wgsl";
    /// Attention of few queries: parts of the keys, and what becomes of them.
    ATTENTION_SPLITS = "wgsl/attention/splits.wgsl";
    /// The second half of it.
    ATTENTION_COMBINE = "wgsl/attention/combine.wgsl";
    /// Appending to KV caches.
    KV_APPEND_ROWS = "wgsl/kv_append/rows.wgsl";
    /// The same by four elements.
    KV_APPEND_QUADS = "wgsl/kv_append/quads.wgsl";
    /// Rotary positions.
    ROPE_PAIRS = "wgsl/rope/pairs.wgsl";
    /// The same by four elements.
    ROPE_QUADS = "wgsl/rope/quads.wgsl";
    /// Norm, rotation and append of heads.
    QK_HEADS = "wgsl/qk_norm_rope_append/heads.wgsl";
    /// The same by four elements.
    QK_QUADS = "wgsl/qk_norm_rope_append/quads.wgsl";
    /// Copies of bytes.
    COPY_BYTES = "wgsl/copy/bytes.wgsl";
    /// Matrix products of everything.
    MATMUL_ANY = "wgsl/matmul/any.wgsl";
    /// Matrix products of signed bytes.
    MATMUL_DOT4 = "wgsl/matmul/dot4.wgsl";
    /// Few rows of A, sums in workgroup memory.
    GEMV_WORKGROUP = "wgsl/matmul/gemv/workgroup.wgsl";
    /// Activations as blocks of 8 bits.
    GEMV_QUANTISE = "wgsl/matmul/gemv/quantise.wgsl";
    /// Few rows of A, sums by subgroups.
    GEMV_SUBGROUP = "wgsl/matmul/gemv/subgroup.wgsl";
    /// Matrix products of floats by tiles in workgroup memory.
    MATMUL_TILED = "wgsl/matmul/tiled.wgsl";
    /// Matrix products of f16 by matrices in registers.
    MATMUL_COOPERATIVE = "wgsl/matmul/cooperative.wgsl";
    /// Scales that rows of A are rounded to f16 under.
    MATMUL_ROW_SCALES = "wgsl/matmul/row_scales.wgsl";
    /// Sums of parts of k.
    MATMUL_REDUCE = "wgsl/matmul/reduce.wgsl";
    /// Products on processors: operands in panels.
    DIRECT_PACK = "wgsl/matmul/direct/pack.wgsl";
    /// Products on processors: panels multiplied.
    DIRECT_MULTIPLY = "wgsl/matmul/direct/multiply.wgsl";
}
