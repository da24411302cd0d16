//! The statistics against SciPy and NumPy (`golden/stats.py` writes `golden/stats.json`).

use perjoule_record::stats::{self, Verdict};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/stats.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(got: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected.as_f64().unwrap();
    let bound = tolerance * expected.abs();
    assert!((got - expected).abs() <= bound, "{what}: got {got:e}, scipy has {expected:e}");
}

#[test]
fn estimators() {
    for case in golden()["described"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let samples = numbers(&case["samples"]);
        assert_close(stats::mean(&samples).unwrap(), &case["mean"], 1e-14, name);
        assert_close(stats::median(&samples).unwrap(), &case["median"], 1e-14, name);
        assert_close(stats::mad(&samples).unwrap(), &case["mad"], 1e-12, name);
        for (p, expected) in case["quantiles"].as_object().unwrap() {
            let got = stats::quantile(&samples, p.parse().unwrap()).unwrap();
            assert_close(got, expected, 1e-14, &format!("{name}, quantile {p}"));
        }
        match case.get("stddev") {
            // The mean is rounded at 1e9, so its last digits are lost on both sides.
            Some(expected) => assert_close(stats::stddev(&samples).unwrap(), expected, 1e-9, name),
            None => assert_eq!(stats::stddev(&samples), None, "{name}"),
        }
    }
}

/// SciPy's interval has 100 times the resamples: the bounds differ by the noise of ours, a fraction of the width.
#[test]
fn bootstrap_intervals() {
    for case in golden()["described"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let samples = numbers(&case["samples"]);
        let Some(expected) = case.get("ci95").map(numbers) else {
            assert_eq!(stats::bootstrap_median_ci95(&samples, 1), None, "{name}");
            continue;
        };
        let width = expected[1] - expected[0];
        for seed in 0..5 {
            let got = stats::bootstrap_median_ci95(&samples, seed).unwrap();
            let off = (got.lo - expected[0]).abs().max((got.hi - expected[1]).abs());
            assert!(off <= 0.1 * width, "{name}, seed {seed}: got {got:?}, scipy has {expected:?}");
            assert_eq!(stats::bootstrap_median_ci95(&samples, seed), Some(got), "the seed decides");
        }
    }
}

#[test]
fn mann_whitney() {
    for case in golden()["pairs"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let got = stats::mann_whitney(&a, &b).unwrap();
        assert_close(got.u, &case["u"], 0.0, name);
        assert_close(got.p_value, &case["p_value"], 1e-10, name);
        let turned = stats::mann_whitney(&b, &a).unwrap();
        assert_eq!(turned.u, (a.len() * b.len()) as f64 - got.u, "{name}");
        assert!((turned.p_value - got.p_value).abs() <= 1e-12, "{name}");
    }
}

#[test]
fn wilcoxon() {
    for case in golden()["paired"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let values = numbers(&case["values"]);
        let got = stats::wilcoxon(&values).unwrap();
        let n = values.iter().filter(|x| **x != 0.0).count() as f64;
        assert_close(got.w.min(n * (n + 1.0) / 2.0 - got.w), &case["w"], 0.0, name);
        assert_close(got.p_value, &case["p_value"], 1e-10, name);
        let turned: Vec<f64> = values.iter().map(|x| -x).collect();
        assert!((stats::wilcoxon(&turned).unwrap().p_value - got.p_value).abs() <= 1e-12, "{name}");
    }
    assert_eq!(stats::wilcoxon(&[0.0, 0.0]).unwrap().p_value, 1.0);
    assert_eq!(stats::wilcoxon(&[]), None);
    assert_eq!(stats::wilcoxon(&[1.0, f64::NAN]), None);
}

#[test]
fn senseless_samples_give_nothing() {
    for samples in [&[][..], &[f64::NAN], &[1.0, f64::INFINITY], &[f64::NAN, 1.0, 2.0]] {
        assert_eq!(stats::median(samples), None);
        assert_eq!(stats::mean(samples), None);
        assert_eq!(stats::stddev(samples), None);
        assert_eq!(stats::mad(samples), None);
        assert_eq!(stats::bootstrap_median_ci95(samples, 0), None);
        assert_eq!(stats::mann_whitney(samples, &[1.0]), None);
        assert_eq!(stats::compare(samples, &[1.0, 2.0], 0.02, 0), None);
    }
    for p in [-0.1, 1.1, f64::NAN] {
        assert_eq!(stats::quantile(&[1.0, 2.0], p), None);
    }
    assert_eq!(stats::compare(&[0.0, 1.0], &[1.0, 1.0], 0.02, 0), None, "a time of zero");
    assert_eq!(stats::compare(&[1.0, 1.0], &[1.0, 1.0], -0.02, 0), None, "a negative threshold");
    assert_eq!(stats::compare(&[1e-308; 2], &[1e308; 2], 0.02, 0), None, "a ratio beyond f64");
}

#[test]
fn extremes_do_not_overflow() {
    let huge = [f64::MAX, f64::MAX, f64::MAX];
    assert_eq!(stats::mean(&huge), Some(f64::MAX));
    assert_eq!(stats::median(&[f64::MAX, f64::MAX]), Some(f64::MAX));
    assert_eq!(stats::median(&[-f64::MAX, f64::MAX]), Some(0.0));
    let spread = stats::stddev(&[-1e200, 1e200]).unwrap();
    assert!((spread / 1e200 - std::f64::consts::SQRT_2).abs() < 1e-12);
    assert_eq!(stats::stddev(&[1e-300, 1e-300]), Some(0.0));
}

/// Sums of uniform numbers: close enough to normal, with a spread of 1 % of `centre`.
fn times(centre: f64, n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    for _ in 0..64 {
        uniform();
    }
    (0..n).map(|_| centre * (1.0 + 0.01 * ((0..12).map(|_| uniform()).sum::<f64>() - 6.0))).collect()
}

#[test]
fn verdicts_find_two_per_cent_and_invent_nothing() {
    let (mut invented, mut found, mut covered) = (0, 0, 0);
    for trial in 0..200 {
        let old = times(1000.0, 60, 3 * trial + 1);
        let equal = stats::compare(&old, &times(1000.0, 60, 3 * trial + 2), 0.02, trial).unwrap();
        invented += u32::from(matches!(equal.verdict, Verdict::Faster | Verdict::Slower));
        covered += u32::from(equal.ci95.contains(1.0));
        let faster = stats::compare(&old, &times(980.0, 60, 3 * trial + 3), 0.02, trial).unwrap();
        assert_ne!(faster.verdict, Verdict::Slower);
        found += u32::from(faster.verdict == Verdict::Faster);
    }
    assert!(invented < 10, "{invented} of 200 equal pairs were called different");
    assert!(found >= 190, "only {found} of 200 differences were found");
    assert!(covered >= 180, "the 95 % interval held the truth {covered} times of 200");
}

/// arch implements the same rule.
#[test]
fn blocks_of_dependent_samples() {
    let golden: Value = serde_json::from_str(include_str!("golden/blocks.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let found = stats::dependence(&numbers(&case["values"])).unwrap();
        assert_close(found.block, &case["circular"], 1e-9, name);
    }
    assert_eq!(stats::dependence(&[1.0; 7]), None, "too few");
    assert_eq!(stats::dependence(&[f64::NAN; 20]), None);
    let constant = stats::dependence(&[3.0; 20]).unwrap();
    assert_eq!((constant.block, constant.inflation), (1.0, 1.0));
    let independent = stats::effective_size(&times(1000.0, 400, 5));
    assert!(independent > 250.0, "{independent} of 400 independent ones");
    let mut level = 0.0;
    let moments = times(1000.0, 400, 5).into_iter().map(|x| {
        level = 0.9 * level + (x - 1000.0);
        level
    });
    let few = stats::effective_size(&moments.collect::<Vec<_>>());
    assert!(few < 100.0, "{few} of 400, each of which resembles the ten before");
    assert_eq!(stats::effective_size(&[1.0, 2.0]), 2.0);
}

/// Samples each of which resembles the one before: the interval of independent samples holds the truth far too seldom.
#[test]
fn intervals_of_samples_that_resemble_their_neighbours() {
    let (mut in_order, mut apart, mut independent) = (0, 0, 0);
    for trial in 0..200u64 {
        let noise = times(1000.0, 400, trial + 1);
        let independent_ci = stats::bootstrap_median_ci95_in_order(&noise, trial).unwrap();
        independent += u32::from(independent_ci.contains(1000.0));
        let mut level = 0.0;
        let correlated: Vec<f64> = noise
            .iter()
            .map(|x| {
                level = 0.6 * level + (x - 1000.0);
                1000.0 + level
            })
            .collect();
        in_order +=
            u32::from(stats::bootstrap_median_ci95_in_order(&correlated, trial).unwrap().contains(1000.0));
        apart += u32::from(stats::bootstrap_median_ci95(&correlated, trial).unwrap().contains(1000.0));
    }
    assert!(independent >= 180, "independent samples: {independent} of 200 held the truth");
    assert!(in_order >= 170, "resembling samples: {in_order} of 200");
    assert!(apart < in_order - 15, "the plain bootstrap is no worse: {apart} of 200 against {in_order}");
    assert_eq!(stats::bootstrap_median_ci95_in_order(&[1.0], 0), None);
}

/// A machine that slows down by a third and recovers: what both variants see drops out of the pairs, and would drown the difference
/// of samples that are taken apart.
#[test]
fn pairs_find_two_per_cent_on_a_machine_that_drifts() {
    let drift = |i: usize, n: usize| 1.0 + 0.3 * (std::f64::consts::PI * i as f64 / n as f64).sin();
    let drifting = |centre: f64, seed: u64| -> Vec<f64> {
        let n = 60;
        times(centre, n, seed).into_iter().enumerate().map(|(i, t)| t * drift(i, n)).collect()
    };
    let (mut invented, mut found, mut apart) = (0, 0, 0);
    for trial in 0..200 {
        let old = drifting(1000.0, 3 * trial + 1);
        let equal = stats::compare_pairs(&old, &drifting(1000.0, 3 * trial + 2), 0.02, trial).unwrap();
        invented += u32::from(matches!(equal.verdict, Verdict::Faster | Verdict::Slower));
        let new = drifting(980.0, 3 * trial + 3);
        found += u32::from(stats::compare_pairs(&old, &new, 0.02, trial).unwrap().verdict == Verdict::Faster);
        apart += u32::from(stats::compare(&old, &new, 0.02, trial).unwrap().verdict == Verdict::Faster);
    }
    assert!(invented < 10, "{invented} of 200 equal pairs were called different");
    assert!(found >= 190, "only {found} of 200 differences were found");
    assert!(apart < 50, "unpaired, {apart} of 200 were found: the drift is too small to show anything");
    assert_eq!(stats::compare_pairs(&[1.0; 3], &[1.0; 2], 0.02, 0), None, "not in pairs");
    assert_eq!(stats::compare_pairs(&[1.0, 0.0], &[1.0; 2], 0.02, 0), None, "a time of zero");
    assert_eq!(stats::compare_pairs(&[1.0; 4], &[1.0; 4], 0.02, 0).unwrap().verdict, Verdict::Same);
}

/// [`stats::compare`] spelled out: every resample drawn, sorted and kept.
fn spelled_out(old: &[f64], new: &[f64], seed: u64) -> [f64; 2] {
    let medians = |samples: &[f64], mut state: u64| -> Vec<f64> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let mut draw = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            sorted[((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize]
        };
        (0..stats::RESAMPLES)
            .map(|_| stats::median(&(0..n).map(|_| draw()).collect::<Vec<_>>()).unwrap())
            .collect()
    };
    let ratios: Vec<f64> = medians(new, !seed).iter().zip(medians(old, seed)).map(|(n, o)| n / o).collect();
    [0.025, 0.975].map(|p| stats::quantile(&ratios, p).unwrap())
}

#[test]
fn many_comparisons_at_once_are_the_comparisons_one_by_one() {
    let sizes = [(2, 2), (2, 7), (5, 20), (6, 6), (7, 19), (20, 20), (21, 60)];
    let comparer = stats::Comparer::new(0.02, 9, sizes);
    for (i, (n, m)) in sizes.into_iter().chain([(3, 4)]).enumerate() {
        let (old, new) = (times(1000.0, n, i as u64), times(990.0, m, 100 + i as u64));
        let together = comparer.compare(&old, &new).unwrap();
        assert_eq!(Some(together), stats::compare(&old, &new, 0.02, 9));
        if n.min(m) < 6 {
            continue;
        }
        let [lo, hi] = spelled_out(&old, &new, 9);
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
        if n.max(m) >= 20 {
            // wider where they happen to resemble their neighbours
            assert!(together.ci95.lo <= lo && hi <= together.ci95.hi, "{n} {m}: {together:?} {lo} {hi}");
            continue;
        }
        assert!(near(together.ci95.lo, lo) && near(together.ci95.hi, hi), "{n} {m}: {together:?} {lo} {hi}");
    }
    assert_eq!(comparer.compare(&[1.0], &[1.0, 2.0]), None);
    assert_eq!(comparer.compare(&[1.0, f64::NAN], &[1.0, 2.0]), None);
}

/// In which share of trials each of the comparisons of `n` samples a side, apart and in pairs, calls `new` faster or slower.
fn told_apart(n: usize, new: f64) -> [f64; 2] {
    let trials = if n < 6 { 2000 } else { 400 };
    let mut told = [0; 2];
    for trial in 0..trials {
        let (old, new) = (times(1000.0, n, 2 * trial + 1), times(new, n, 2 * trial + 2));
        let apart = stats::compare(&old, &new, 0.0, trial).unwrap();
        let pairs = stats::compare_pairs(&old, &new, 0.0, trial).unwrap();
        for (told, compared) in told.iter_mut().zip([apart, pairs]) {
            let differs = matches!(compared.verdict, Verdict::Faster | Verdict::Slower);
            assert!(!differs || compared.p_value <= 0.05, "{compared:?}");
            assert!(compared.ci95.contains(compared.ratio), "{compared:?}");
            *told += u32::from(differs);
        }
    }
    told.map(|told| f64::from(told) / trials as f64)
}

/// By bootstrap, almost half of these with two samples a side are called different.
#[test]
fn few_samples_of_one_distribution_are_not_called_different() {
    for n in [2, 3, 4, 5, 8, 20] {
        let told = told_apart(n, 1000.0);
        assert!(told.iter().all(|told| *told <= 0.06), "{n} samples: {told:?}");
    }
}

#[test]
fn three_standard_deviations_are_found_from_five_samples_on() {
    for n in [5, 6, 8, 20] {
        let told = told_apart(n, 1030.0);
        assert!(told.iter().all(|told| *told >= 0.85), "{n} samples: {told:?}");
    }
}

#[test]
fn intervals_of_the_median_of_few_samples_hold_it() {
    for n in 2..=5 {
        let (mut held, mut held_below_zero) = (0, 0);
        for trial in 0..400 {
            let samples = times(1000.0, n, trial + 1);
            let interval = stats::bootstrap_median_ci95_in_order(&samples, trial).unwrap();
            assert!(interval.contains(stats::median(&samples).unwrap()));
            held += u32::from(interval.contains(1000.0));
            let below_zero: Vec<f64> = samples.iter().map(|x| x - 2000.0).collect();
            let interval = stats::bootstrap_median_ci95_in_order(&below_zero, trial).unwrap();
            held_below_zero += u32::from(interval.contains(-1000.0));
        }
        assert!(held.min(held_below_zero) >= 376, "{n} samples: {held} and {held_below_zero} of 400");
    }
    assert_eq!(stats::bootstrap_median_ci95_in_order(&[3.0; 4], 1), Some([3.0, 3.0].into()));
    assert_eq!(stats::bootstrap_median_ci95_in_order(&[-f64::MAX, f64::MAX], 1), None, "beyond the numbers");
    let wide = stats::bootstrap_median_ci95_in_order(&[1e-300, 1e300], 1).unwrap();
    assert!(wide.lo >= 0.0 && wide.hi.is_finite(), "{wide:?}");
}

/// Samples of a machine whose slow moments last for 20 of them: 2 % of moments, 1 % of jitter.
fn with_neighbours(n: usize, seed: u64) -> Vec<f64> {
    let (moments, jitter) = (times(0.01, n, 2 * seed + 1), times(0.01, n, 2 * seed + 2));
    let kept = (-1.0f64 / 20.0).exp();
    let normal = |x: f64| 100.0 * (x / 0.01 - 1.0);
    let mut moment = 0.02 * normal(times(0.01, 1, !seed)[0]);
    moments
        .into_iter()
        .zip(jitter)
        .map(|(m, j)| {
            moment = kept * moment + 0.02 * (1.0 - kept * kept).sqrt() * normal(m);
            1000.0 * (moment + 0.01 * normal(j)).exp()
        })
        .collect()
}

/// As if they were independent, about half of these are called different.
#[test]
fn samples_that_resemble_their_neighbours_are_not_called_different() {
    let (mut wrong, mut significant, mut held, mut found) = (0, 0, 0, 0);
    for line in 0..400 {
        let old = with_neighbours(400, 2 * line);
        let new = with_neighbours(400, 2 * line + 1);
        let compared = stats::compare(&old, &new, 0.0, line).unwrap();
        wrong += u32::from(matches!(compared.verdict, Verdict::Faster | Verdict::Slower));
        significant += u32::from(compared.p_value <= 0.05);
        held += u32::from(compared.ci95.contains(1.0));
        let slower: Vec<f64> = new.iter().map(|x| 1.05 * x).collect();
        found += u32::from(stats::compare(&old, &slower, 0.02, line).unwrap().verdict == Verdict::Slower);
    }
    println!(
        "of 400: {wrong} wrong, {significant} significant, {held} intervals hold 1, {found} of 5 % found"
    );
    assert!(wrong <= 24, "{wrong} of 400 verdicts are wrong");
    assert!(held >= 360, "{held} of 400 intervals hold the truth");
    assert!(found >= 360, "{found} of 400 differences of 5 % are found");
}

#[test]
fn verdicts_by_interval() {
    for (lo, hi, threshold, expected) in [
        (0.99, 1.01, 0.02, Verdict::Same),
        (0.985, 0.995, 0.02, Verdict::Same),
        (0.97, 0.99, 0.02, Verdict::Faster),
        (0.5, 0.6, 0.02, Verdict::Faster),
        (1.01, 1.03, 0.02, Verdict::Slower),
        (0.97, 1.01, 0.02, Verdict::Unclear),
        (0.9, 1.1, 0.02, Verdict::Unclear),
        (0.97, 1.0, 0.0, Verdict::Unclear),
        (1.0, 1.0, 0.0, Verdict::Same),
    ] {
        assert_eq!(Verdict::of([lo, hi].into(), threshold), expected, "[{lo}, {hi}] at {threshold}");
    }
    for verdict in [Verdict::Faster, Verdict::Slower, Verdict::Same] {
        assert_eq!(verdict.with_p_value(0.05), verdict);
    }
    assert_eq!(Verdict::Slower.with_p_value(0.051), Verdict::Unclear);
    assert_eq!(Verdict::Slower.with_p_value(f64::NAN), Verdict::Unclear);
    assert_eq!(Verdict::Same.with_p_value(0.9), Verdict::Same);
    assert_eq!(format!("[{:>7}]", Verdict::Same), "[   same]");
}
