//! Nonsense is refused, never computed and never a panic; what is accepted runs.

use crate::common::Dice;
use crate::samples::{KINDS, Source, arguments};
use perjoule_kernels::op::*;
use perjoule_kernels::{DType, Error, KvLayout, Matrix, PackFormat, Rows};
use proptest::prelude::*;

const F32: DType = DType::F32;
const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn absurd_descriptors_are_refused_or_have_sizes_that_fit(kind in 0..KINDS, seed: u64) {
        let op = Source { dice: Dice(seed), absurd: true }.op(kind);
        let valid = op.validate();
        let (operands, _, _) = (op.operands(), op.flops(), op.bytes());
        let _ = (op.to_string(), op.constants(), op.spec().reduction());
        match valid {
            Ok(()) => {
                for operand in operands {
                    prop_assert!(operand.bytes <= isize::MAX as u64, "{op}: {operand:?}");
                    let whole = operand.dtype.bytes(operand.elements as usize);
                    prop_assert_eq!(whole, Some(operand.bytes), "{}: {:?}", op, operand);
                }
            }
            Err(Error::Invalid { op: name, .. } | Error::Overflow { op: name, .. }) => {
                // fused ops pass on what their parts say
                prop_assert!(name == op.name() || kind >= 20);
            }
            Err(other) => prop_assert!(false, "{op}: {other}"),
        }
    }

    #[test]
    fn small_valid_ops_run(kind in 0..KINDS, seed: u64) {
        let mut source = Source { dice: Dice(seed), absurd: false };
        let op = source.op(kind);
        if op.validate().is_ok() {
            let mut args = arguments(&op, &mut source.dice);
            op.reference(&mut args);
            for (arg, operand) in args.iter().zip(op.operands()) {
                prop_assert_eq!(arg.value.len() as u64, operand.elements);
                if operand.access.writes() {
                    prop_assert_eq!(arg.magnitude.len(), arg.value.len());
                    prop_assert!(!arg.magnitude.iter().any(|m| *m < 0.0));
                }
            }
        }
    }
}

#[test]
fn most_small_descriptors_are_valid() {
    for kind in 0..KINDS {
        let draw = |seed| Source { dice: Dice(seed), absurd: false }.op(kind);
        let valid = (0..200).filter(|&seed| draw(seed).validate().is_ok()).count();
        assert!(
            valid >= 40,
            "{}: {valid} of 200, such as {:?}",
            draw(0).name(),
            (0..200).find_map(|s| draw(s).validate().err())
        );
    }
}

#[test]
fn sizes_that_overflow_are_an_error() {
    let huge = 1 << 40;
    let kv = KvLayout::contiguous(huge, 1 << 20, huge);
    let ops: Vec<Op> = vec![
        MatMul::nn(huge, huge, 1, F32, F32, F32).into(),
        MatMul::nn(usize::MAX, 1, usize::MAX, F32, F32, F32).into(),
        Attention::causal(1, 1, huge, kv, F32).into(),
        KvAppend::dense(1, 1, kv, F32).into(),
        RmsNorm::dense(huge, huge, F32).into(),
        LayerNorm::dense(2, usize::MAX, F32).into(),
        Rope::dense(1, huge, huge, F32, 10_000.0).into(),
        Gated::dense(huge, huge, F32, GatedKind::SwiGlu).into(),
        Softmax::dense(huge, huge, F32).into(),
        Embed::dense(1, 1 << 30, 1 << 60, F32, F32).into(),
        Add::dense(huge, huge, F32).into(),
        Combine::dense(huge, 1, huge, F32).into(),
        Argmax { x: Rows::dense(usize::MAX, 2), dtype: F32 }.into(),
        Cast::dense(huge, huge, F32, DType::F16).into(),
        Collective { kind: CollectiveKind::AllGather, dtype: F32, count: usize::MAX, world: 2 }.into(),
    ];
    for op in ops {
        assert!(matches!(op.validate(), Err(Error::Overflow { .. })), "{op}: {:?}", op.validate());
    }
    // slots are i32
    let routed = Route { tokens: huge, experts: 8, top_k: 2, dtype: F32, order: RouteOrder::TopKThenSoftmax };
    assert!(matches!(Op::from(routed).validate(), Err(Error::Invalid { .. })));
    assert!(matches!(Op::from(Advance::uniform(huge, huge)).validate(), Err(Error::Invalid { .. })));
}

#[test]
fn empty_sizes_are_computed_not_refused() {
    let kv = KvLayout::contiguous(1, 0, 4);
    let ops: Vec<Op> = vec![
        MatMul::nn(0, 3, 4, F32, F32, F32).into(),
        MatMul::nn(2, 3, 0, F32, F32, F32).into(),
        Attention::causal(0, 1, 2, kv, F32).into(),
        Attention::causal(2, 0, 2, kv, F32).into(),
        Attention::causal(2, 1, 2, kv, F32).into(),
        KvAppend::dense(0, 1, kv, F32).into(),
        Advance::uniform(0, 1).into(),
        RmsNorm::dense(0, 8, F32).into(),
        Softmax::dense(0, 8, F32).into(),
        Add::dense(3, 0, F32).into(),
        Embed::dense(0, 0, 8, F32, F32).into(),
        Route { tokens: 0, experts: 2, top_k: 1, dtype: F32, order: RouteOrder::TopKThenSoftmax }.into(),
        Collective { kind: CollectiveKind::AllReduce, dtype: F32, count: 0, world: 2 }.into(),
    ];
    for op in ops {
        op.validate().unwrap_or_else(|e| panic!("{e}"));
        let mut args = arguments(&op, &mut Dice(1));
        op.reference(&mut args);
        assert!(op.flops() == 0 || op.name() == "attention", "{op}");
    }
}

#[test]
fn fused_parts_that_disagree_are_refused() {
    let append = KvAppend::dense(2, 3, KvLayout::contiguous(2, 8, 6), F32);
    let op = QkNormRopeAppend::dense(4, append, 10_000.0);
    let norm = HeadNorm::default();
    for (q_norm, k_norm) in [(None, None), (Some(norm), None), (None, Some(norm)), (Some(norm), Some(norm))] {
        Op::from(QkNormRopeAppend { q_norm, k_norm, ..op }).validate().unwrap();
    }
    let rope = |tokens, heads| Rope::dense(tokens, heads, 6, F32, 10_000.0);
    let coinciding = Rope { x: Rows { outer_stride: 0, ..op.q }, ..op.q_rope };
    let odd = KvAppend { src_k: Rows::grid(6, 2, 5), ..append };
    let wrong = [
        ("q of fewer heads", QkNormRopeAppend { q: Rows::grid(6, 3, 6), ..op }),
        ("q of fewer tokens", QkNormRopeAppend { q: Rows::grid(5, 4, 6), q_rope: rope(5, 4), ..op }),
        ("q of integers", QkNormRopeAppend { q_dtype: DType::I8, ..op }),
        ("out that coincides", QkNormRopeAppend { q_rope: coinciding, ..op }),
        ("a norm's eps", QkNormRopeAppend { q_norm: Some(HeadNorm { eps: -1.0, ..norm }), ..op }),
        (
            "a norm's weight",
            QkNormRopeAppend { k_norm: Some(HeadNorm { weight: DType::Q8_0, ..norm }), ..op },
        ),
        ("another number of keys", QkNormRopeAppend { k_rope: rope(6, 3), ..op }),
        ("an odd rotation", QkNormRopeAppend { k_rope: Rope { rotary_dim: 5, ..op.k_rope }, ..op }),
        ("keys that the cache has no room for", QkNormRopeAppend { append: odd, ..op }),
    ];
    for (what, op) in wrong {
        assert!(matches!(Op::from(op).validate(), Err(Error::Invalid { .. })), "{what}");
    }
    // of nothing there is no mean
    let append = KvAppend::dense(2, 3, KvLayout::contiguous(2, 8, 0), F32);
    let op = QkNormRopeAppend::dense(4, append, 10_000.0);
    Op::from(op).validate().unwrap();
    assert!(Op::from(QkNormRopeAppend { k_norm: Some(norm), ..op }).validate().is_err());
}

/// `op` is valid for exactly these dtypes in the place that `with` fills.
#[track_caller]
fn accepts<T: Into<Op>>(what: &str, dtypes: &[DType], with: impl Fn(DType) -> T) {
    for dtype in DType::ALL {
        let op: Op = with(dtype).into();
        let valid = op.validate();
        assert_eq!(valid.is_ok(), dtypes.contains(&dtype), "{what} {dtype}: {valid:?}");
    }
}

#[test]
fn each_op_takes_the_dtypes_it_documents_and_no_others() {
    let blocks: Vec<DType> = DType::ALL.into_iter().filter(|d| d.is_block()).collect();
    let plain: Vec<DType> = DType::ALL.into_iter().filter(|d| !d.is_block()).collect();
    let weights = [&FLOATS[..], &blocks].concat();
    let cached = [&FLOATS[..], &[DType::Q8_0]].concat();
    let matrix = Tensor2 { dtype: F32, strides: Matrix::row_major(2, 2) };

    accepts("a", &FLOATS, |d| MatMul::linear(2, 2, 256, d, F32, F32));
    accepts("b", &weights, |d| MatMul::linear(2, 2, 256, F32, d, F32));
    accepts("b beside i8", &[DType::I8], |d| MatMul::linear(2, 2, 256, DType::I8, d, F32));
    accepts("c", &FLOATS, |d| MatMul::linear(2, 2, 256, F32, F32, d));
    let integers = [&FLOATS[..], &[DType::I32]].concat();
    accepts("c of i8", &integers, |d| MatMul::linear(2, 2, 256, DType::I8, DType::I8, d));
    let epilogue = |epilogue| MatMul { epilogue, ..MatMul::linear(2, 2, 2, F32, F32, F32) };
    accepts("bias", &FLOATS, |d| epilogue(Epilogue { bias: Some(d), ..Epilogue::default() }));
    accepts("residual", &FLOATS, |d| {
        epilogue(Epilogue { residual: Some(Tensor2 { dtype: d, ..matrix }), ..Epilogue::default() })
    });
    accepts("c of scaled i8", &FLOATS, |d| MatMul {
        a_scale: Some(Granularity::Vector),
        ..MatMul::linear(2, 2, 4, DType::I8, DType::I8, d)
    });
    accepts("b with scales", &FLOATS, |d| MatMul {
        b_scale: Some(Granularity::Vector),
        ..MatMul::linear(2, 2, 256, F32, d, F32)
    });

    let linear = MatMul::linear(2, 2, 256, F32, F32, F32);
    let grouped = GroupedMatMul {
        experts: 2,
        rows: 2,
        n: 2,
        k: 256,
        a: linear.a,
        a_rows: 2,
        a_divisor: 1,
        b: linear.b,
        b_constant: true,
        c: linear.c,
        c_rows: 2,
        bias: None,
        activation: Activation::None,
        policy: Policy::default(),
    };
    let typed = |t: Tensor2, dtype| Tensor2 { dtype, ..t };
    accepts("a", &FLOATS, |d| GroupedMatMul { a: typed(grouped.a, d), ..grouped });
    accepts("b", &weights, |d| GroupedMatMul { b: typed(grouped.b, d), ..grouped });
    accepts("c", &FLOATS, |d| GroupedMatMul { c: typed(grouped.c, d), ..grouped });
    accepts("bias", &FLOATS, |d| GroupedMatMul { bias: Some(d), ..grouped });
    accepts("c of i8", &integers, |d| GroupedMatMul {
        a: typed(grouped.a, DType::I8),
        b: typed(grouped.b, DType::I8),
        c: typed(grouped.c, d),
        ..grouped
    });

    let kv = KvLayout::contiguous(2, 4, 32);
    let attention = Attention::causal(1, 2, 2, kv, F32);
    accepts("q", &FLOATS, |d| Attention { q_dtype: d, ..attention });
    accepts("kv", &cached, |d| Attention { kv_dtype: d, ..attention });
    accepts("out", &FLOATS, |d| Attention { out_dtype: d, ..attention });
    let append = KvAppend::dense(1, 2, kv, F32);
    accepts("source", &FLOATS, |d| KvAppend { src_dtype: d, ..append });
    accepts("kv", &cached, |d| KvAppend { kv_dtype: d, ..append });

    let rms = RmsNorm::dense(2, 4, F32);
    accepts("x", &FLOATS, |d| RmsNorm { x_dtype: d, ..rms });
    accepts("weight", &FLOATS, |d| RmsNorm { weight: d, ..rms });
    accepts("out", &FLOATS, |d| RmsNorm { out_dtype: d, ..rms });
    let layer = LayerNorm::dense(2, 4, F32);
    accepts("x", &FLOATS, |d| LayerNorm { x_dtype: d, ..layer });
    accepts("weight", &FLOATS, |d| LayerNorm { weight: d, ..layer });
    accepts("out", &FLOATS, |d| LayerNorm { out_dtype: d, ..layer });
    accepts("rope", &FLOATS, |d| Rope::dense(2, 2, 4, d, 10_000.0));
    accepts("gated", &FLOATS, |d| Gated { dtype: d, ..Gated::dense(2, 4, F32, GatedKind::GeGluTanh) });
    accepts("gated out", &FLOATS, |d| Gated {
        out_dtype: d,
        ..Gated::dense(2, 4, F32, GatedKind::GeGluTanh)
    });
    accepts("softmax", &FLOATS, |d| Softmax { dtype: d, ..Softmax::dense(2, 4, F32) });
    accepts("softmax out", &FLOATS, |d| Softmax { out_dtype: d, ..Softmax::dense(2, 4, F32) });
    accepts("table", &weights, |d| Embed::dense(2, 4, 256, d, F32));
    accepts("embed out", &FLOATS, |d| Embed::dense(2, 4, 256, F32, d));
    accepts("add", &FLOATS, |d| Add::dense(2, 4, d));
    accepts("logits", &FLOATS, |dtype| Route {
        tokens: 2,
        experts: 4,
        top_k: 2,
        dtype,
        order: RouteOrder::TopKThenSoftmax,
    });
    accepts("combine", &FLOATS, |d| Combine { dtype: d, ..Combine::dense(2, 2, 4, F32) });
    accepts("combine out", &FLOATS, |d| Combine { out_dtype: d, ..Combine::dense(2, 2, 4, F32) });
    let x = Rows::dense(2, 256);
    accepts("argmax", &FLOATS, |dtype| Argmax { x, dtype });
    accepts("sample", &FLOATS, |dtype| Sample { x, dtype, temperature: 1.0, top_k: None, top_p: None });
    for from in DType::ALL {
        let to = if from.is_block() { &FLOATS[..] } else { &plain };
        accepts("cast", to, |d| Cast::dense(2, 256, from, d));
    }
    accepts("quantise from", &FLOATS, |from| Quantise { x, from, to: DType::Q8_0, scale: None });
    accepts("quantise to", &blocks, |to| Quantise { x, from: F32, to, scale: None });
    let scale = Some(Granularity::Group(32));
    accepts("scaled", &[DType::I8, DType::F8E4M3], |to| Quantise { x, from: F32, to, scale });
    static FORMAT: PackFormat =
        PackFormat { name: "test", dtype: DType::F32, panel: 4, panel_bytes: |k| Some(k as u64) };
    let packed = [&weights[..], &[DType::I8]].concat();
    let b = |dtype| Tensor2 { dtype, ..linear.b };
    accepts("pack", &packed, |d| Pack { format: &FORMAT, matrices: 1, n: 2, k: 256, b: b(d) });
    accepts("collective", &plain, |dtype| Collective {
        kind: CollectiveKind::AllReduce,
        dtype,
        count: 2,
        world: 2,
    });
    let gated = Gated::dense(2, 2, F32, GatedKind::SwiGlu);
    accepts("fused weights", &weights, |d| {
        let gate = MatMul::linear(2, 2, 256, F32, d, F32);
        GatedMatMul { gate, up: gate, gated }
    });
}

#[test]
fn block_formats_run_along_k_in_whole_blocks() {
    let op = MatMul::linear(2, 3, 64, F32, DType::Q4_0, F32);
    let refused = |change: fn(&mut MatMul)| {
        let mut changed = op;
        change(&mut changed);
        assert!(matches!(Op::from(changed).validate(), Err(Error::Invalid { .. })), "{changed:?}");
    };
    Op::from(op).validate().unwrap();
    refused(|op| op.k = 33);
    refused(|op| op.b.strides = Matrix::row_major(64, 3));
    refused(|op| op.b.strides.col = 65);
    refused(|op| op.b.strides.batch = 1);
}

#[test]
fn outputs_whose_elements_coincide_are_refused() {
    let shared = Rows::dense(2, 4).with_outer_stride(3);
    let mut matmul = MatMul::nn(2, 2, 2, F32, F32, F32);
    matmul.c.strides.row = 1;
    let mut kv = KvLayout::contiguous(2, 3, 4);
    kv.head_stride = 8;
    let ops: Vec<Op> = vec![
        matmul.into(),
        Add { out: shared, ..Add::dense(2, 4, F32) }.into(),
        RmsNorm { out: shared, ..RmsNorm::dense(2, 4, F32) }.into(),
        Rope { x: Rows { outer_stride: 0, ..Rows::grid(2, 1, 4) }, ..Rope::dense(2, 1, 4, F32, 10.0) }.into(),
        Softmax { out: shared, ..Softmax::dense(2, 4, F32) }.into(),
        KvAppend::dense(1, 1, kv, F32).into(),
    ];
    for op in ops {
        let Err(Error::Invalid { field, .. }) = op.validate() else { panic!("{op}: {:?}", op.validate()) };
        assert!(field.starts_with("strides") || field == "layout of the cache", "{op}: {field}");
    }
}
