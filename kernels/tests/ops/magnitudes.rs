//! The magnitudes that references give: wide enough for inputs that are off by a rounding, too narrow for a term that is wrong.

use crate::common::Dice;
use crate::samples::{KINDS, Source, arguments};
use perjoule_kernels::op::*;
use perjoule_kernels::{Access, DType, KvLayout, Numerics};
use proptest::prelude::*;

const F32: DType = DType::F32;

/// What [`Numerics`] allows an output to be off by, before it is rounded.
fn bound(op: &Op, magnitude: f64) -> f64 {
    Numerics::F32.unit * (4.0 + (op.spec().reduction() as f64).sqrt()) * magnitude
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn inputs_off_by_a_rounding_stay_within_the_bound(kind in 0..KINDS, seed: u64) {
        let mut source = Source { dice: Dice(seed), absurd: false };
        let op = source.op(kind);
        // these round within, so that a small change may become a whole step
        let steps = matches!(op, Op::Quantise(_)) || matches!(op, Op::Cast(c) if c.to.is_integer());
        if op.validate().is_err() || steps {
            return Ok(());
        }
        let mut exact = arguments(&op, &mut source.dice);
        let mut rounded = exact.clone();
        let operands = op.operands();
        for (arg, operand) in rounded.iter_mut().zip(&operands) {
            // accumulated into f32 from here on
            let off = operand.access == Access::Read && !operand.slot && operand.dtype.is_float();
            if off && operand.name != "uniform" {
                for value in &mut arg.value {
                    *value *= 1.0 + Numerics::F32.unit * source.dice.real() / 2.0;
                }
            }
        }
        op.reference(&mut exact);
        op.reference(&mut rounded);
        for ((a, b), operand) in exact.iter().zip(&rounded).zip(&operands).filter(|(_, o)| o.access.writes()) {
            for at in 0..a.value.len() {
                let (x, y) = (a.value[at], b.value[at]);
                let allowed = bound(&op, a.magnitude[at]);
                let same = (x.is_nan() && y.is_nan()) || (x - y).abs() <= allowed;
                prop_assert!(same, "{op:?}: {}[{at}] {x} {y}, {allowed:e} allowed", operand.name);
            }
        }
    }
}

#[test]
fn a_wrong_input_does_not_pass() {
    let kv = KvLayout::contiguous(1, 64, 16);
    let mut attention = Attention::causal(1, 2, 2, kv, F32);
    attention.causal = false;
    let product = MatMul::linear(3, 5, 300, F32, F32, F32);
    let ops: Vec<Op> = vec![
        product.into(),
        attention.into(),
        RmsNorm::dense(2, 300, F32).into(),
        LayerNorm::dense(2, 300, F32).into(),
        Rope::dense(3, 2, 16, F32, 10_000.0).into(),
        Gated::dense(3, 20, F32, GatedKind::SwiGlu).into(),
        Gated::dense(3, 20, F32, GatedKind::GeGlu).into(),
        Gated::dense(3, 20, F32, GatedKind::GeGluTanh).into(),
        Gated::dense(3, 20, F32, GatedKind::GptOss { alpha: 1.7, limit: 7.0 }).into(),
        Softmax::dense(2, 200, F32).into(),
        Add::dense(3, 20, F32).into(),
        Combine::dense(3, 4, 20, F32).into(),
        GatedMatMul { gate: product, up: product, gated: Gated::dense(3, 5, F32, GatedKind::SwiGlu) }.into(),
    ];
    for op in ops {
        let mut dice = Dice(7);
        let mut clean = arguments(&op, &mut dice);
        if let Op::Attention(_) = op {
            clean[3] = Values::new(vec![64.0]);
        }
        let inputs = clean.clone();
        op.reference(&mut clean);
        for (which, operand) in op.operands().iter().enumerate() {
            if operand.access == Access::Write || operand.slot {
                continue;
            }
            for _ in 0..20 {
                let mut wrong = inputs.clone();
                let at = dice.below(wrong[which].value.len());
                let old = wrong[which].value[at];
                // as though the element had been read from somewhere else
                wrong[which].value[at] = if old.abs() > 0.1 { -old } else { 1.0 };
                op.reference(&mut wrong);
                let seen = clean.iter().zip(&wrong).any(|(a, b)| {
                    (0..a.magnitude.len())
                        .any(|i| (a.value[i] - b.value[i]).abs() > bound(&op, a.magnitude[i]))
                });
                assert!(seen, "{op}: {}[{at}] may be wrong", operand.name);
            }
        }
    }
}

/// Whether an f32 result passes: half a unit in its last place, and the bound.
fn passes(op: &Op, got: f32, want: f64, magnitude: f64) -> bool {
    let half_unit = want.abs() * DType::F32.epsilon() + f64::from(f32::from_bits(1));
    (f64::from(got) - want).abs() <= half_unit + bound(op, magnitude)
}

#[test]
fn plain_f32_evaluations_pass_whatever_the_exponent() {
    // exponentials overflow and underflow on the way
    let gates: Vec<f32> = (-600..=600).map(|i| i as f32 * 0.3 + 0.017).collect();
    let ups: Vec<f32> = gates.iter().rev().map(|g| g * 0.21).collect();
    let silu = |g: f32, u: f32| g / (1.0 + (-g).exp()) * u;
    let gelu = |g: f32, u: f32| {
        // an erf that is right to the last bit of f32: what is left is how the formula cancels
        let g64 = f64::from(g);
        let erf = (2.0 * Activation::Gelu.apply(g64) / g64 - 1.0) as f32;
        0.5 * g * (1.0 + erf) * u
    };
    let gelu_tanh = |g: f32, u: f32| 0.5 * g * (1.0 + (0.797_884_6 * (g + 0.044715 * g * g * g)).tanh()) * u;
    let gpt_oss = |g: f32, u: f32| {
        let g = g.min(7.0);
        g / (1.0 + (-1.702 * g).exp()) * (u.clamp(-7.0, 7.0) + 1.0)
    };
    type Evaluate = fn(f32, f32) -> f32;
    let kinds: [(GatedKind, Evaluate); 4] = [
        (GatedKind::SwiGlu, silu),
        (GatedKind::GeGlu, gelu),
        (GatedKind::GeGluTanh, gelu_tanh),
        (GatedKind::GptOss { alpha: 1.702, limit: 7.0 }, gpt_oss),
    ];
    let wide = |x: &[f32]| Values::new(x.iter().map(|&x| f64::from(x)).collect());
    let count = gates.len();
    for (kind, evaluate) in kinds {
        let op = Op::from(Gated::dense(1, count, F32, kind));
        let mut args = [wide(&gates), wide(&ups), Values::new(vec![0.0; count])];
        op.reference(&mut args);
        for i in 0..count {
            let (got, want) = (evaluate(gates[i], ups[i]), args[2].value[i]);
            assert!(
                passes(&op, got, want, args[2].magnitude[i]),
                "{kind:?} {} {}: {got} {want}",
                gates[i],
                ups[i]
            );
        }
    }
    let op = Op::from(Softmax::dense(1, count, F32));
    let mut args = [wide(&gates), Values::new(vec![0.0; count])];
    op.reference(&mut args);
    let top = gates[count - 1];
    let flush = |x: f32| if x < f32::MIN_POSITIVE { 0.0 } else { x };
    let exps: Vec<f32> = gates.iter().map(|x| flush((x - top).exp())).collect();
    let total: f32 = exps.iter().sum();
    for i in 0..count {
        let (got, want) = (flush(exps[i] / total), args[1].value[i]);
        assert!(passes(&op, got, want, args[1].magnitude[i]), "softmax {}: {got} {want}", gates[i]);
    }
}

#[test]
fn the_last_row_of_a_slot_driven_op_is_seen() {
    // a kernel that forgets the newest key must fail: it has the least weight when all are equal
    let kv = KvLayout::contiguous(1, 512, 8);
    let op = Attention::causal(1, 1, 1, kv, F32);
    let mut dice = Dice(3);
    let (q, k, v) = (dice.reals(8), dice.reals(512 * 8), dice.reals(512 * 8));
    let at = |len: f64| {
        let mut args = [q.clone(), k.clone(), v.clone(), vec![len], vec![0.0; 8]].map(Values::new);
        op.reference(&mut args);
        args[4].clone()
    };
    let (all, short) = (at(512.0), at(511.0));
    let op = Op::from(op);
    let seen = (0..8).any(|d| (all.value[d] - short.value[d]).abs() > bound(&op, all.magnitude[d]));
    assert!(seen);
}
