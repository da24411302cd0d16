//! Keys of tuning tables, over all cases of the suite: ops that share a key are the same work, up to sizes that vary from call to call.

use perjoule::cpu::{CpuDevice, Options};
use perjoule_kernels::op::{Activation, Attention, Collective, CollectiveKind, MatMul, Policy};
use perjoule_kernels::{Choice, DType, KvLayout, Matrix, Op, PackFormat, Paging};
use perjoule_suite::{Scope, cases};
use perjoule_tests::OPS;
use perjoule_tests::oracle::{Fault, row};
use std::collections::BTreeMap;

/// The printed descriptor without its numbers: every variant, flag, element type and optional part of it. Parameters that are
/// multiplied with, but of which the work does not depend, print the same.
fn form(op: &Op) -> String {
    let text = format!("{op:?}").replace("-inf", "0").replace("inf", "0").replace("NaN", "0");
    let mut form = String::new();
    // a digit within a name stays
    let mut before = ' ';
    for c in text.chars() {
        let number = c.is_ascii_digit() && !before.is_alphanumeric() || c == '.' || c == '-';
        if number {
            continue;
        }
        if c.is_ascii_digit() && !before.is_alphabetic() {
            continue;
        }
        form.push(c);
        before = c;
    }
    // exponents of floats
    form.replace(" e,", " ,").replace(" e ", " ")
}

/// Sizes as keys round them, each by name.
fn sizes(op: &Op) -> Vec<(&'static str, usize)> {
    let round = |n: usize| if n == 0 { 0 } else { n.next_power_of_two() };
    op.shape().into_iter().map(|(name, n)| (name, round(n))).collect()
}

#[test]
fn ops_with_the_same_key_are_the_same_work() {
    let device = CpuDevice::open(&Options { threads: Some(1), ..Options::default() }).unwrap();
    let mut by_key: BTreeMap<String, Vec<Op>> = BTreeMap::new();
    let mut count = 0;
    for op in OPS {
        let list = cases(&device, &Choice::new(row(op, Fault::None), 0, None), Scope::Full).unwrap();
        assert!(list.len() > 5, "{op}: {} cases", list.len());
        count += list.len();
        for case in list {
            let key = case.op.tuning_key();
            assert!(!key.contains(['\t', '\n']), "{key:?}");
            by_key.entry(key).or_default().push(case.op);
        }
    }
    let mut wrong = Vec::new();
    for (key, ops) in &by_key {
        let first = &ops[0];
        let operands =
            |op: &Op| op.operands().into_iter().map(|o| (o.name, o.dtype, o.access)).collect::<Vec<_>>();
        for op in &ops[1..] {
            let same =
                form(op) == form(first) && sizes(op) == sizes(first) && operands(op) == operands(first);
            // two sizes at least vary
            let close = |x: u64, y: u64| x.max(y) <= 16 * x.min(y).max(64);
            if !same || !close(op.flops(), first.flops()) || !close(op.bytes(), first.bytes()) {
                wrong.push(format!("{key}\n  {op:?}\n  {first:?}"));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} keys are shared:\n{}", wrong.len(), wrong.join("\n"));
    // and a key is no fingerprint: sizes that vary fall together
    assert!(by_key.len() < count, "{count} cases have {} keys", by_key.len());
}

#[test]
fn what_changes_the_work_changes_the_key() {
    let base = MatMul::linear(64, 128, 256, DType::F32, DType::F32, DType::F32);
    let with = |change: &dyn Fn(&mut MatMul)| {
        let mut op = base;
        change(&mut op);
        Op::from(op)
    };
    let mut ops: Vec<Op> = vec![
        base.into(),
        MatMul::nn(64, 128, 256, DType::F32, DType::F32, DType::F32).into(),
        with(&|op| op.b_constant = false),
        with(&|op| op.policy = Policy { tf32: true, ..Policy::default() }),
        with(&|op| op.policy = Policy { f16_accumulate: true, ..Policy::default() }),
        with(&|op| op.epilogue.activation = Activation::Gelu),
        with(&|op| op.epilogue.activation = Activation::GeluTanh),
        with(&|op| op.epilogue.bias = Some(DType::F32)),
        with(&|op| op.epilogue.bias = Some(DType::F16)),
        with(&|op| op.epilogue.residual = Some(op.c)),
        with(&|op| op.epilogue.scale = 0.5),
        with(&|op| op.a.strides = Matrix::col_major(64, 256)),
        with(&|op| op.a.strides.row += 8),
        with(&|op| op.b.strides.col += 8),
        with(&|op| op.c.strides.row += 8),
        with(&|op| op.a.dtype = DType::BF16),
        with(&|op| op.n = 129),
        with(&|op| op.m = 65),
        with(&|op| op.m = 0),
        with(&|op| op.batch = 4),
    ];
    let layout = KvLayout::contiguous(2, 512, 64);
    let base = Attention::causal(2, 4, 8, layout, DType::F32);
    let with = |change: &dyn Fn(&mut Attention)| {
        let mut op = base;
        change(&mut op);
        Op::from(op)
    };
    let paged = |block| KvLayout::paged(2, 512, 64, Paging { block, blocks: 512 * 2 / block });
    ops.extend([
        base.into(),
        with(&|op| op.causal = false),
        with(&|op| op.window = Some(64)),
        with(&|op| op.window = Some(256)),
        with(&|op| op.soft_cap = Some(30.0)),
        with(&|op| op.sinks = true),
        with(&|op| op.ragged = true),
        with(&|op| op.kv = KvLayout::token_major(2, 512, 64)),
        with(&|op| op.kv = paged(16)),
        with(&|op| op.kv = paged(32)),
        with(&|op| op.kv_dtype = DType::F16),
        with(&|op| op.q.outer_stride += 64),
    ]);
    let reduce = |kind, count| Op::from(Collective { kind, dtype: DType::F32, count, world: 1 });
    ops.extend([
        reduce(CollectiveKind::AllReduce, 1 << 10),
        reduce(CollectiveKind::AllReduce, 1 << 20),
        reduce(CollectiveKind::AllGather, 1 << 10),
    ]);
    static ONE: PackFormat =
        PackFormat { name: "one", dtype: DType::F32, panel: 8, panel_bytes: |_| Some(64) };
    static TWO: PackFormat =
        PackFormat { name: "two", dtype: DType::F32, panel: 8, panel_bytes: |_| Some(64) };
    let constant = MatMul::linear(1, 64, 64, DType::F32, DType::F32, DType::F32).constant().unwrap();
    ops.extend([constant.pack(&ONE).into(), constant.pack(&TWO).into()]);
    let mut keys: BTreeMap<String, &Op> = BTreeMap::new();
    for op in &ops {
        if let Some(other) = keys.insert(op.tuning_key(), op) {
            panic!("{op:?} and {other:?} have the key {}", op.tuning_key());
        }
    }
    // what does not change it does not
    let linear = |m| Op::from(MatMul::linear(m, 128, 256, DType::F32, DType::F32, DType::F32)).tuning_key();
    assert_eq!(linear(50), linear(64));
    assert_eq!(with(&|op| op.scale = 0.3).tuning_key(), with(&|op| op.scale = 0.4).tuning_key());
}
