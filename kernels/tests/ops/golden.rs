//! The references against tensors that PyTorch computed in float64: see `tests/golden/ops.py` at the root of the workspace.

use crate::common::{assert_close, run};
use perjoule_kernels::op::*;
use perjoule_kernels::{DType, KvLayout, Matrix, Rows};
use serde_json::Value;

const F32: DType = DType::F32;

struct Case(Value);

impl Case {
    fn param(&self, name: &str) -> &Value {
        &self.0["params"][name]
    }

    fn size(&self, name: &str) -> usize {
        self.param(name).as_u64().unwrap_or_else(|| panic!("{name} of {}", self.0["params"])) as usize
    }

    fn number(&self, name: &str) -> f64 {
        self.param(name).as_f64().unwrap_or_else(|| panic!("{name} of {}", self.0["params"]))
    }

    fn flag(&self, name: &str) -> bool {
        self.param(name).as_bool().unwrap_or_else(|| panic!("{name} of {}", self.0["params"]))
    }

    fn text(&self, name: &str) -> &str {
        self.param(name).as_str().unwrap_or_else(|| panic!("{name} of {}", self.0["params"]))
    }

    fn activation(&self) -> Activation {
        match self.text("activation") {
            "none" => Activation::None,
            "silu" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_tanh" => Activation::GeluTanh,
            other => panic!("activation {other}"),
        }
    }

    fn tensor(&self, group: &str, name: &str) -> Option<Vec<f64>> {
        let number = |v: &Value| match v.as_str() {
            Some(text) => text.parse().expect("nan, inf or -inf"),
            None => v.as_f64().expect("a number"),
        };
        Some(self.0[group].get(name)?.as_array()?.iter().map(number).collect())
    }

    fn input(&self, name: &str) -> Vec<f64> {
        self.tensor("inputs", name).unwrap_or_else(|| panic!("input {name}"))
    }

    fn output(&self, name: &str) -> Vec<f64> {
        self.tensor("outputs", name).unwrap_or_else(|| panic!("output {name}"))
    }

    /// Runs the op on the case's inputs, which have the names of its operands, and compares those of its operands that the case
    /// has as outputs.
    fn check(&self, op: impl Into<Op>, tolerance: f64) {
        let op = op.into();
        let operands = op.operands();
        let read = operands.iter().filter(|o| o.access != perjoule_kernels::Access::Write);
        let inputs: Vec<Vec<f64>> = read
            .map(|o| {
                let untouched = vec![f64::NAN; o.elements as usize];
                self.tensor("inputs", o.name).unwrap_or(untouched)
            })
            .collect();
        let inputs: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
        let args = run(op.clone(), &inputs);
        let mut compared = 0;
        for (operand, arg) in operands.iter().zip(&args).filter(|(o, _)| o.access.writes()) {
            if let Some(want) = self.tensor("outputs", operand.name) {
                assert_close(
                    &format!("{op} {} {}", operand.name, self.0["params"]),
                    &arg.value,
                    &want,
                    tolerance,
                );
                compared += 1;
            }
        }
        assert!(compared > 0, "{op}: nothing to compare");
    }
}

/// The cases of one op, of which there are that many.
fn cases(op: &str, count: usize) -> Vec<Case> {
    let all: Value =
        serde_json::from_str(include_str!("../golden/ops.json")).expect("golden/ops.json is JSON");
    let list = all.as_array().expect("a list").iter();
    let found: Vec<Case> = list.filter(|c| c["op"] == op).cloned().map(Case).collect();
    assert_eq!(found.len(), count, "cases of {op}");
    found
}

#[test]
fn matmul_agrees_with_pytorch() {
    for case in cases("matmul", 18) {
        let [batch, m, n, k] = ["batch", "m", "n", "k"].map(|name| case.size(name));
        let strides = |name: &str| {
            let list: Vec<usize> =
                case.param(name).as_array().unwrap().iter().map(|s| s.as_u64().unwrap() as usize).collect();
            Tensor2 { dtype: F32, strides: Matrix { row: list[0], col: list[1], batch: list[2] } }
        };
        let scale = |name: &str| match (case.param(name), case.param(name).as_u64()) {
            (Value::Null, _) => None,
            (_, Some(group)) => Some(Granularity::Group(group as usize)),
            (text, None) if text == "tensor" => Some(Granularity::Tensor),
            (_, None) => Some(Granularity::Vector),
        };
        let dense = Tensor2 { dtype: F32, strides: Matrix::row_major(m, n) };
        let mut op = MatMul::nn(m, n, k, F32, F32, F32);
        (op.batch, op.a, op.b) = (batch, strides("a"), strides("b"));
        (op.a_scale, op.b_scale) = (scale("a_scale"), scale("b_scale"));
        op.epilogue = Epilogue {
            scale: case.number("scale") as f32,
            bias: case.flag("bias").then_some(F32),
            activation: case.activation(),
            residual: case.flag("residual").then_some(dense),
        };
        // storage is as long as the operand's extent but for the gap behind the last row
        let trim = |name: &str, at: usize| {
            let mut data = case.input(name);
            data.truncate(op.operands()[at].elements as usize);
            data
        };
        let mut case = Case(case.0.clone());
        let (a, b) = (trim("a", 0), trim("b", 1));
        (case.0["inputs"]["a"], case.0["inputs"]["b"]) = (a.into(), b.into());
        case.check(op, 1e-13);
    }
}

#[test]
fn grouped_matmul_agrees_with_pytorch() {
    for case in cases("grouped_matmul", 2) {
        let [experts, rows, n, k] = ["experts", "rows", "n", "k"].map(|name| case.size(name));
        let tensor = |strides| Tensor2 { dtype: F32, strides };
        let op = GroupedMatMul {
            experts,
            rows,
            n,
            k,
            a: tensor(Matrix::row_major(case.size("a_rows"), k)),
            a_rows: case.size("a_rows"),
            a_divisor: case.size("a_divisor"),
            b: tensor(Matrix::col_major(k, n)),
            b_constant: true,
            c: tensor(Matrix::row_major(rows, n)),
            c_rows: rows,
            bias: case.flag("bias").then_some(F32),
            activation: case.activation(),
            policy: Policy::default(),
        };
        case.check(op, 1e-13);
    }
}

#[test]
fn attention_agrees_with_pytorch() {
    for case in cases("attention", 15) {
        let kv = KvLayout::contiguous(case.size("kv_heads"), case.size("capacity"), case.size("d"));
        let mut op = Attention::causal(case.size("batch"), case.size("q_len"), case.size("heads"), kv, F32);
        op.q = Rows::grid(case.size("tokens"), case.size("heads"), case.size("d"));
        op.out = op.q;
        op.ragged = case.flag("ragged");
        op.causal = case.flag("causal");
        op.window = case.param("window").as_u64().map(|w| w as usize);
        op.soft_cap = case.param("soft_cap").as_f64().map(|c| c as f32);
        op.sinks = case.flag("sinks");
        case.check(op, 1e-12);
    }
}

#[test]
fn norms_agree_with_pytorch() {
    for case in cases("rms_norm", 4) {
        let (rows, len) = (case.size("rows"), case.size("len"));
        let dense = Rows::dense(rows, len);
        let mut op = RmsNorm::dense(rows, len, F32);
        op.eps = case.number("eps") as f32;
        op.weight_offset = case.number("offset") as f32;
        op.residual = case.flag("residual").then_some(Residual { rows: dense, sum: dense });
        case.check(op, 1e-13);
    }
    for case in cases("layer_norm", 4) {
        let (rows, len) = (case.size("rows"), case.size("len"));
        let dense = Rows::dense(rows, len);
        let mut op = LayerNorm::dense(rows, len, F32);
        op.eps = case.number("eps") as f32;
        op.bias = case.flag("bias");
        op.residual = case.flag("residual").then_some(Residual { rows: dense, sum: dense });
        case.check(op, 1e-13);
    }
}

#[test]
fn rope_agrees_with_transformers() {
    for case in cases("rope", 10) {
        let mut op =
            Rope::dense(case.size("tokens"), case.size("heads"), case.size("dim"), F32, case.number("theta"));
        op.rotary_dim = case.size("rotary");
        if case.flag("interleaved") {
            op.style = RopeStyle::Interleaved;
        }
        op.scaling = match case.text("scaling") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: case.number("factor") },
            "llama3" => RopeScaling::Llama3 {
                factor: case.number("factor"),
                low_freq_factor: case.number("low_freq_factor"),
                high_freq_factor: case.number("high_freq_factor"),
                original_max: case.size("original_max_position_embeddings"),
            },
            "yarn" => RopeScaling::Yarn {
                factor: case.number("factor"),
                beta_fast: case.number("beta_fast"),
                beta_slow: case.number("beta_slow"),
                original_max: case.size("original_max_position_embeddings"),
                truncate: case.param("truncate").as_bool().unwrap_or(true),
                // one of the cases configures it
                attention_factor: if case.number("attention_factor") == 1.25 {
                    1.25
                } else {
                    RopeScaling::yarn_attention_factor(case.number("factor"))
                },
            },
            other => panic!("scaling {other}"),
        };
        // transformers computes the frequencies in f32
        let frequencies = op.inverse_frequencies();
        let want = case.output("frequencies");
        assert_eq!(frequencies.len(), want.len());
        for (got, want) in frequencies.iter().zip(want) {
            assert!((got / want - 1.0).abs() < 2e-6, "{}: {got}, wanted {want}", case.0["params"]);
        }
        assert!((op.attention_factor() - case.number("attention_factor")).abs() < 1e-7);
        case.check(op, 1e-4);
    }
}

#[test]
fn gated_agrees_with_pytorch() {
    for case in cases("gated", 4) {
        let kind = match case.text("kind") {
            "swiglu" => GatedKind::SwiGlu,
            "geglu" => GatedKind::GeGlu,
            "geglu_tanh" => GatedKind::GeGluTanh,
            "gpt_oss" => {
                GatedKind::GptOss { alpha: case.number("alpha") as f32, limit: case.number("limit") as f32 }
            }
            other => panic!("kind {other}"),
        };
        case.check(Gated::dense(case.size("rows"), case.size("len"), F32, kind), 1e-13);
    }
}

#[test]
fn softmax_agrees_with_pytorch() {
    for case in cases("softmax", 3) {
        let op = Softmax {
            scale: case.number("scale") as f32,
            ..Softmax::dense(case.size("rows"), case.size("len"), F32)
        };
        case.check(op, 1e-14);
    }
}

#[test]
fn embed_agrees_with_pytorch() {
    for case in cases("embed", 1) {
        let scale = case.number("scale") as f32;
        let op = Embed {
            scale,
            ..Embed::dense(case.size("tokens"), case.size("vocab"), case.size("dim"), F32, F32)
        };
        case.check(op, 0.0);
    }
}

#[test]
fn route_and_combine_agree_with_pytorch() {
    for case in cases("route", 3) {
        let order = match case.param("renormalise").as_bool() {
            Some(renormalise) => RouteOrder::SoftmaxThenTopK { renormalise },
            None => RouteOrder::TopKThenSoftmax,
        };
        let [tokens, experts, top_k] = ["tokens", "experts", "top_k"].map(|name| case.size(name));
        case.check(Route { tokens, experts, top_k, dtype: F32, order }, 1e-14);
    }
    for case in cases("combine", 2) {
        let residual = case.flag("residual");
        let dense = Combine::dense(case.size("tokens"), case.size("top_k"), case.size("len"), F32);
        case.check(Combine { residual, ..dense }, 1e-14);
    }
}

#[test]
fn sampling_keeps_the_candidates_of_transformers() {
    for case in cases("sample", 6) {
        let logits = case.input("x");
        let op = Sample {
            x: Rows::dense(1, logits.len()),
            dtype: F32,
            temperature: case.number("temperature") as f32,
            top_k: case.param("top_k").as_u64().map(|k| k as usize),
            top_p: case.param("top_p").as_f64().map(|p| p as f32),
        };
        let mut got = vec![0.0; logits.len()];
        for (index, probability) in op.candidates(&logits) {
            got[index] = probability;
        }
        assert_close(&case.0["params"].to_string(), &got, &case.output("probabilities"), 1e-12);
    }
}
