//! Properties of predictions, and predictions beside facts.

use perjoule_catalogue::{
    Assumptions, Catalogue, Class, Costs, Dtype, Grid, Known, ModelShape, Phase, Prediction, Stack, WhyNot,
    Workload, predict,
};
use proptest::prelude::*;

fn load(model: &str) -> Workload {
    Workload {
        model: ModelShape::builtin()[model],
        dtype: Dtype::Bf16,
        kv_dtype: Dtype::Bf16,
        phase: Phase::Mixed,
        stack: Stack::Serving,
        n_parallel: 8.0,
        n_prompt: 256,
        n_gen: 256,
    }
}

fn class(id: &str) -> Class {
    Catalogue::builtin().get(id).unwrap().clone()
}

fn sound(p: &Prediction) {
    let estimates = [Some(p.tokens_per_s)].into_iter();
    let power = [p.board, p.wall].into_iter().flatten();
    for e in estimates.flatten().chain(power.clone().flat_map(|x| [x.watts, x.joules_per_token])) {
        assert!(e.low > 0.0 && e.low < e.value && e.value <= e.high && e.high.is_finite(), "{p:?}");
    }
    for x in power {
        let watts = x.joules_per_token.value * p.tokens_per_s.value;
        assert!((watts / x.watts.value - 1.0).abs() < 1e-12, "joules x tokens/s is watts");
    }
    assert!(p.tokens_per_s.high <= p.roof && p.share_of_roof <= 1.0 && p.share_of_roof > 0.0, "{p:?}");
    assert!((0.0..=1.0).contains(&p.overhead) && !p.calibration.is_empty());
}

fn any_workload() -> impl Strategy<Value = (usize, u32, Workload)> {
    let models: Vec<ModelShape> = ModelShape::builtin().values().copied().collect();
    let dtypes = [
        Dtype::Bf16,
        Dtype::F16,
        Dtype::Fp8,
        Dtype::Int8,
        Dtype::Int4,
        Dtype::Mxfp4,
        Dtype::Nvfp4,
        Dtype::Q4KM,
    ];
    let classes = Catalogue::builtin().classes().len();
    let phases = [Phase::Prefill, Phase::Decode, Phase::Mixed];
    (
        (0..classes, 1u32..=16, prop::sample::select(models), prop::sample::select(dtypes.to_vec())),
        (prop::sample::select(phases.to_vec()), 1.0..2048.0f64, 1u32..8192, 1u32..8192, any::<bool>()),
    )
        .prop_map(|((class, devices, model, dtype), (phase, n_parallel, n_prompt, n_gen, tuned))| {
            let stack = if tuned { Stack::Tuned } else { Stack::Serving };
            let kv_dtype = Dtype::Bf16;
            (class, devices, Workload { model, dtype, kv_dtype, phase, stack, n_parallel, n_prompt, n_gen })
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn predictions_are_sound((index, devices, load) in any_workload()) {
        let catalogue = Catalogue::builtin();
        if let Ok(p) = predict(&catalogue.classes()[index], devices, &load) {
            sound(&p);
        }
    }

    #[test]
    fn more_sequences_are_never_slower((index, devices, mut load) in any_workload(), more in 1.0..8.0f64) {
        let catalogue = Catalogue::builtin();
        let class = &catalogue.classes()[index];
        let few = predict(class, devices, &load);
        load.n_parallel *= more;
        if let (Ok(few), Ok(many)) = (few, predict(class, devices, &load)) {
            prop_assert!(many.tokens_per_s.value >= few.tokens_per_s.value * (1.0 - 1e-9));
        }
    }

    #[test]
    fn the_number_of_devices_that_is_named_suffices((index, _, load) in any_workload()) {
        let catalogue = Catalogue::builtin();
        let class = &catalogue.classes()[index];
        if let Err(WhyNot::DoesNotFit { min_devices: Some(n), needed_gb, available_gb }) = predict(class, 1, &load) {
            prop_assert!(n > 1 && needed_gb > available_gb);
            let enough = !matches!(predict(class, n, &load), Err(WhyNot::DoesNotFit { .. }));
            let fewer = matches!(predict(class, n - 1, &load), Err(WhyNot::DoesNotFit { .. }));
            prop_assert!(enough && fewer);
        }
    }
}

#[test]
fn what_cannot_be_predicted_says_why() {
    let mut big = load("llama-3.1-405b");
    let why = predict(&class("nvidia-h100-sxm"), 8, &big).unwrap_err();
    assert!(
        why.to_string()
            .starts_with("does not fit: 813.3 GB of weights and KV cache, 608.0 GB usable; 11 devices"),
        "{why}"
    );
    big.dtype = Dtype::Fp8;
    assert!(predict(&class("nvidia-h100-sxm"), 8, &big).is_ok());

    let why = predict(&class("aws-graviton4"), 1, &load("llama-3.1-8b")).unwrap_err().to_string();
    assert!(why.contains("aws-graviton4") && why.contains("unknown") && why.contains("TOML"), "{why}");

    let none = Workload { n_parallel: 0.0, ..load("llama-3.1-8b") };
    assert!(matches!(predict(&class("nvidia-h100-sxm"), 1, &none), Err(WhyNot::Invalid(_))));
    assert!(matches!(predict(&class("nvidia-h100-sxm"), 0, &load("llama-3.1-8b")), Err(WhyNot::Invalid(_))));
}

#[test]
fn what_is_not_known_is_noted() {
    let p = predict(&class("aws-trainium2"), 2, &load("llama-3.1-8b")).unwrap();
    assert!(
        p.board.is_none() && p.notes.iter().any(|note| note.contains("TDP of aws-trainium2 is unknown")),
        "{:?}",
        p.notes
    );
    assert!(
        p.calibration.contains("4 rows of generation") && p.calibration.contains("aws-neuron"),
        "{}",
        p.calibration
    );

    let p = predict(&class("google-tpu-v6e"), 1, &load("llama-3.1-8b")).unwrap();
    assert!(p.calibration.starts_with("pooled"), "{}", p.calibration);
    let known = predict(&class("nvidia-h100-sxm"), 1, &load("llama-3.1-8b")).unwrap();
    assert!(p.tokens_per_s.width() > known.tokens_per_s.width(), "a class without rows has the wider band");

    let mut a100 = load("llama-3.1-8b");
    a100.dtype = Dtype::Fp8;
    let p = predict(&class("nvidia-a100-sxm-80"), 1, &a100).unwrap();
    assert!(p.notes.iter().any(|note| note.contains("none is known for fp8")), "{:?}", p.notes);
}

#[test]
fn batch_moves_energy_as_published() {
    // ML.ENERGY v3, Llama-3.1-70B on 4 H100: 3.76 J a token with 8 sequences, 0.37 with 1024
    let at = |n_parallel: f64| {
        let load = Workload { n_parallel, n_prompt: 120, n_gen: 350, ..load("llama-3.1-70b") };
        predict(&class("nvidia-h100-sxm"), 4, &load).unwrap().board.unwrap().joules_per_token
    };
    let (few, many) = (at(8.0), at(1024.0));
    assert!(few.contains(3.76) && many.contains(0.37), "{few:?} {many:?}");
    assert!((6.0..16.0).contains(&(few.value / many.value)));
}

#[test]
fn costs_follow_from_joules_and_hours() {
    let h100 = class("nvidia-h100-sxm");
    let p = predict(&h100, 4, &load("llama-3.1-70b")).unwrap();
    let grid = Grid::builtin();
    let (oregon, google) = (grid.region("oregon").unwrap(), grid.operator("google").unwrap());
    let c = Costs::new(&p, &h100, 4, Assumptions::new(oregon, google, &h100));
    let joules = p.wall.unwrap().joules_per_token;
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
    close(c.kwh_facility.unwrap().value, joules.value * 1e6 / 3.6e6 * 1.10);
    close(c.usd_energy.unwrap().high, joules.high * 1e6 / 3.6e6 * 1.10 * 0.0752);
    close(c.gco2e.unwrap().low, joules.low * 1e6 / 3.6e6 * 1.10 * 79.0);
    close(c.usd_hire.unwrap().value, 1e6 / p.tokens_per_s.value / 3600.0 * 4.0 * 6.88);
    close(c.kwh_provisioned.unwrap().value, 1e6 / p.tokens_per_s.value / 3600.0 * 4.0 * 1.73);
    assert!(
        c.kwh_provisioned.unwrap().value > c.kwh_wall.unwrap().value,
        "what is provisioned is more than what is drawn"
    );
    assert_eq!(c.assumptions.region, "Oregon");

    // an unknown price leaves the rest, and a price in conflict is a range
    let finland = grid.region("finland").unwrap();
    let c = Costs::new(&p, &h100, 4, Assumptions::new(finland, google, &h100));
    assert!(c.usd_energy.is_none() && c.gco2e.is_some());
    let trainium = class("aws-trainium2");
    let p = predict(&trainium, 4, &load("llama-3.1-70b")).unwrap();
    let c = Costs::new(&p, &trainium, 4, Assumptions::new(oregon, google, &trainium));
    let (Known::Conflict { values }, hire) = (&trainium.usd_h_device.known, c.usd_hire.unwrap()) else {
        panic!()
    };
    close(hire.low, 1e6 / p.tokens_per_s.high / 3600.0 * 4.0 * values[0]);
    assert!(c.gco2e.is_none(), "no TDP, no energy");
}
