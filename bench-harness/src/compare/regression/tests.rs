//! Verdicts on files whose truth is known.

use super::*;
use perjoule_record::{CacheState, Energy, EnergyKind, Environment};

/// A kernel whose samples scatter by `noise` around `centre`.
pub(crate) fn kernel(name: &str, centre: f64, noise: f64) -> Record {
    let mut record = Record::new(Kind::Kernel, &Environment::default());
    let w = &mut record.workload;
    (w.op, w.kernel, w.dtype) = (Some("matmul".into()), Some(name.into()), Some("bf16".into()));
    (w.shape, w.n_threads, w.cache_state) = (Some("m=1".into()), Some(2), Some(CacheState::Hot));
    record.environment.cpu_model = Some("Test CPU".into());
    let at = |i: usize| centre * (1.0 + noise * ((i * 7919 % 101) as f64 / 50.0 - 1.0));
    record.timing.samples_ns = Some((0..30).map(at).collect());
    record
}

pub(crate) const RULES: Rules =
    Rules { threshold: 0.03, any_kernel: false, any_machine: false, fail_on_missing: false, gate: true };

fn report<'a>(old: &'a [Record], new: &'a [Record]) -> Report<'a> {
    regression(("old", old), ("new", new), &RULES).unwrap()
}

#[test]
fn verdicts_are_those_of_the_samples() {
    for (factor, noise, verdict, fails) in [
        (1.0, 0.005, "same", 0),
        (1.05, 0.005, "slower", 1),
        (0.9, 0.005, "faster", 0),
        (1.0, 0.5, "unclear", 0),
        // certain, but within the threshold
        (1.02, 0.005, "same", 0),
    ] {
        let (old, new) = ([kernel("k", 1000.0, noise)], [kernel("k", 1000.0 * factor, noise)]);
        let report = report(&old, &new);
        assert_eq!(report.lines[0].verdict(), verdict, "{factor} {noise}: {:?}", report.lines);
        assert_eq!(report.regressions(), fails);
    }
}

#[test]
fn a_difference_that_reaches_beyond_the_threshold_but_is_not_is_no_regression() {
    let compared =
        Comparison { ratio: 1.025, ci95: [1.01, 1.04].into(), p_value: 0.0, verdict: Verdict::Slower };
    let line = |ratio: f64, kind| Line {
        label: String::new(),
        kind,
        old: None,
        new: None,
        outcome: Outcome::Compared(
            Comparison { ratio, ..compared },
            Among { p_value: 0.0, q_value: 0.0, chance: false },
        ),
    };
    assert!(!line(1.025, "kernel").is_regression(0.03));
    assert!(line(1.035, "kernel").is_regression(0.03));
    assert!(!line(1.035, "ceiling").is_regression(0.03), "that is the machine");
}

/// Uniform in 0..1, from a number (SplitMix64).
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as f64 / 2f64.powi(64)
}

/// Lines whose `samples` scatter like a machine's: log-normally by `noise`. `slow` says which are 5 % slower.
fn file(
    lines: usize,
    samples: usize,
    noise: f64,
    state: &mut u64,
    slow: impl Fn(usize) -> bool,
) -> Vec<Record> {
    let record = |i: usize, state: &mut u64| {
        let mut record = kernel(&format!("k{i}"), 1.0, 0.0);
        let centre = 1000.0 * if slow(i) { 1.05 } else { 1.0 };
        let normal = |state: &mut u64| (0..12).map(|_| random(state)).sum::<f64>() - 6.0;
        record.timing.samples_ns =
            Some((0..samples).map(|_| centre * (noise * normal(state)).exp()).collect());
        record
    };
    (0..lines).map(|i| record(i, state)).collect()
}

/// Without the number of lines in mind, almost every one of these files has a line that is called slower.
#[test]
fn many_lines_of_one_distribution_have_no_regression() {
    for samples in [30, 5] {
        let mut state = 7;
        let (mut files, mut naive) = (0, 0);
        for _ in 0..200 {
            let [old, new] = [(), ()].map(|()| file(200, samples, 0.1, &mut state, |_| false));
            let report = report(&old, &new);
            files += usize::from(report.count("slower") > 0);
            naive += usize::from(report.lines.iter().any(
                |line| matches!(&line.outcome, Outcome::Compared(c, among) if among.chance && c.ratio > 1.0),
            ));
        }
        assert!(files < 10, "{samples} samples: {files} of 200 files");
        assert!(naive > 150, "{samples} samples: {naive} of 200 files would have been");
    }
}

#[test]
fn a_real_slowdown_of_few_lines_is_found() {
    for (samples, noise) in [(30, 0.02), (5, 0.005)] {
        let mut state = 11;
        let old = file(1000, samples, noise, &mut state, |_| false);
        let new = file(1000, samples, noise, &mut state, |i| i % 100 == 0);
        let report = report(&old, &new);
        let slower: Vec<&str> = report
            .lines
            .iter()
            .filter(|line| line.verdict() == "slower")
            .filter_map(|line| line.new?.workload.kernel.as_deref())
            .collect();
        let real = slower.iter().filter(|name| name.ends_with("00") || **name == "k0").count();
        assert_eq!(real, 10, "{samples} samples: {slower:?}");
        assert!(slower.len() <= 12, "{slower:?}");
        assert!(report.notes.iter().any(|note| note.contains("held to 5 %")), "{:?}", report.notes);
    }
}

/// Samples of machines whose slow moments last for twenty of them: as if they were independent, dozens of lines are called different.
#[test]
fn samples_that_resemble_their_neighbours_have_no_regression() {
    let mut state = 5;
    let normal = |state: &mut u64| (0..12).map(|_| random(state)).sum::<f64>() - 6.0;
    let mut file = |factor: f64| -> Vec<Record> {
        let record = |i: usize| {
            let mut record = kernel(&format!("k{i}"), 1.0, 0.0);
            let kept = (-1.0f64 / 20.0).exp();
            let mut moment = 0.02 * normal(&mut state);
            let sample = |_| {
                moment = kept * moment + 0.02 * (1.0 - kept * kept).sqrt() * normal(&mut state);
                1000.0 * factor * (moment + 0.01 * normal(&mut state)).exp()
            };
            record.timing.samples_ns = Some((0..400).map(sample).collect());
            record
        };
        (0..100).map(record).collect()
    };
    let (mut wrong, mut found) = (0, 0);
    for _ in 0..5 {
        let (old, new, slow) = (file(1.0), file(1.0), file(1.1));
        let equal = report(&old, &new);
        wrong += equal.count("slower") + equal.count("faster");
        found += report(&old, &slow).count("slower");
    }
    println!(
        "of 500 lines {wrong} are wrongly called different, and of 500 that are slower by a tenth {found} found"
    );
    assert!(wrong <= 10, "{wrong} of 500 verdicts are wrong");
    assert!(found >= 450, "{found} of 500 slower ones are found");
}

/// Joules of a call by a meter, known to within 2 %.
fn metered(record: Record, joules: f64) -> Record {
    let mut record = record;
    let e = &mut record.energy;
    (e.joules, e.joules_per_call) = (Some(100.0 * joules), Some(joules));
    e.energy_ci95 = Some([98.0 * joules, 102.0 * joules].into());
    e.energy_kind = Some(EnergyKind::Measured);
    (e.energy_source, e.energy_boundary) = (Some("rapl: package".into()), Some("package".into()));
    record
}

#[test]
fn measured_energy_is_a_line_of_its_own() {
    let of = |joules: f64| [metered(kernel("k", 1000.0, 0.005), joules)];
    for (joules, verdict, fails) in
        [(2.4, "more energy", 1), (1.6, "less energy", 0), (2.02, "unclear", 0), (2.07, "unclear", 0)]
    {
        let (old, new) = (of(2.0), of(joules));
        let report = report(&old, &new);
        let line = report.lines.iter().find(|line| line.kind == ENERGY).unwrap();
        assert_eq!((line.verdict(), report.regressions()), (verdict, fails), "{joules}: {line:?}");
        let Outcome::Compared(c, _) = &line.outcome else { panic!("{line:?}") };
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
        assert!(near(c.ratio, joules / 2.0), "{c:?}");
        assert!(near(c.ci95.lo, c.ratio * 0.98 / 1.02) && near(c.ci95.hi, c.ratio * 1.02 / 0.98), "{c:?}");
        assert!(!report.notes.iter().any(|note| note.contains("energy is not")), "{:?}", report.notes);
    }
    let rules = Rules { threshold: 0.05, ..RULES };
    let (old, new) = (of(2.0), of(2.0));
    let wide = regression(("old", &old), ("new", &new), &rules).unwrap();
    assert_eq!(wide.count("same"), 2);
}

#[test]
fn energy_that_is_not_alike_is_not_compared_and_says_so() {
    let measured = metered(kernel("k", 1000.0, 0.005), 2.0);
    let but = |change: fn(&mut Energy)| {
        let mut record = metered(kernel("k", 1000.0, 0.005), 4.0);
        change(&mut record.energy);
        record
    };
    for (new, why) in [
        (kernel("k", 1000.0, 0.005), "energy is not compared: it is unknown"),
        (but(|e| e.energy_kind = Some(EnergyKind::Modelled)), "energy is not compared: it is modelled"),
        (but(|e| e.energy_boundary = Some("wall".into())), "different meters or boundaries"),
        (but(|e| e.energy_source = Some("nvml".into())), "different meters or boundaries"),
        (but(|e| e.energy_source = None), "different meters or boundaries"),
        (but(|e| e.energy_ci95 = None), "a side has no interval"),
        (but(|e| e.energy_ci95 = Some([0.0, 1.0].into())), "a side has no interval"),
        (but(|e| e.energy_ci95 = Some([f64::NAN, 1.0].into())), "a side has no interval"),
        (but(|e| e.joules = Some(0.0)), "a side has no interval"),
        (but(|e| e.joules_per_call = Some(f64::NAN)), "it is unknown"),
        (but(|e| e.joules_per_call = Some(0.0)), "it is unknown"),
    ] {
        let (old, new) = ([measured.clone()], [new]);
        let report = report(&old, &new);
        assert_eq!((report.lines.len(), report.failures()), (1, Vec::<String>::new()), "{why}");
        assert!(report.notes.iter().any(|note| note.contains(why)), "{why}: {:?}", report.notes);
    }
    // where another line's is compared, the note says of how many it is not
    let old = [measured.clone(), kernel("l", 1.0, 0.0)];
    let some = report(&old, &old);
    assert!(some.notes.iter().any(|note| note == "energy of 1 line is not compared: it is unknown"));
    let mut invalid = but(|_| ());
    invalid.invalidate("wrong result");
    let new = [invalid];
    assert_eq!(report(&old[..1], &new).lines.len(), 1, "an invalid record has no energy");
}

#[test]
fn what_cannot_be_judged_does_not_pass() {
    let fine = || kernel("k", 1000.0, 0.005);
    let mut invalid = fine();
    invalid.invalidate("wrong result");
    let mut empty = fine();
    empty.timing.samples_ns = None;
    let ceiling = || {
        let mut record = kernel("roof", 1000.0, 0.005);
        record.kind = Kind::Ceiling;
        record
    };
    let other = || kernel("other", 1000.0, 0.005);
    for (old, new, failures) in [
        (vec![fine()], vec![fine()], &[][..]),
        (vec![fine(), other()], vec![invalid.clone(), other()], &["1 line no longer valid"]),
        (vec![invalid.clone(), other()], vec![fine(), other()], &[]),
        (vec![invalid.clone(), other()], vec![invalid.clone(), other()], &[]),
        (vec![fine()], vec![invalid.clone()], &["1 line no longer valid", "no measurement could be judged"]),
        (vec![fine()], vec![empty.clone()], &["no measurement could be judged"]),
        (vec![fine()], vec![other()], &["no measurement could be judged"]),
        (vec![fine(), ceiling()], vec![other(), ceiling()], &["no measurement could be judged"]),
        (vec![ceiling()], vec![ceiling()], &[]),
        (vec![fine(), other()], vec![other()], &[]),
        (vec![fine(), other()], vec![empty, other()], &[]),
    ] {
        let report = report(&old, &new);
        let said = report.failures();
        let alike = said.len() == failures.len() && said.iter().zip(failures).all(|(a, b)| a.starts_with(b));
        assert!(alike, "{said:?} is not {failures:?}");
    }
    let rules = Rules { fail_on_missing: true, ..RULES };
    let (old, new) = ([fine(), other()], [other(), kernel("more", 1.0, 0.0)]);
    let report = regression(("old", &old), ("new", &new), &rules).unwrap();
    assert_eq!(report.failures(), ["1 line missing"]);
    assert!(report.notes.last().unwrap().ends_with("matmul bf16 m=1 k hot 2 threads"), "{:?}", report.notes);
}

#[test]
fn a_single_line_is_judged_by_itself() {
    let mut state = 3;
    let (old, new) = (file(1, 3, 0.001, &mut state, |_| false), file(1, 3, 0.001, &mut state, |_| true));
    let report = report(&old, &new);
    assert_eq!(
        (report.lines[0].verdict(), report.notes.as_slice()),
        ("slower", &["energy is not compared: it is unknown".to_owned()][..])
    );
}

#[test]
fn what_has_no_counterpart_is_named() {
    let old = [kernel("a", 1.0, 0.0), kernel("b", 1.0, 0.0)];
    let new = [kernel("b", 1.0, 0.0), kernel("c", 1.0, 0.0)];
    let report = report(&old, &new);
    let verdicts: Vec<(&str, &str)> =
        report.lines.iter().map(|line| (line.verdict(), line.label.split(' ').nth(3).unwrap())).collect();
    assert_eq!(verdicts, [("only old", "a"), ("only new", "c"), ("same", "b")]);
    let any = Rules { any_kernel: true, ..RULES };
    let pair = regression(("old", &old[..1]), ("new", &new[1..]), &any).unwrap();
    assert_eq!(pair.lines.len(), 1, "kernels of other names match when asked for");
}

#[test]
fn invalid_records_are_never_good() {
    let mut bad = kernel("k", 500.0, 0.005);
    bad.invalidate("wrong result");
    let (old, new) = ([kernel("k", 1000.0, 0.005)], [bad.clone()]);
    let compared = report(&old, &new);
    assert_eq!((compared.lines[0].verdict(), compared.count("faster")), ("invalid", 0));
    // an older valid record does not stand in for it
    bad.test_time = Some("2999-01-01T00:00:00Z".into());
    let two = [kernel("k", 1000.0, 0.005), bad];
    assert_eq!(report(&old, &two).lines[0].verdict(), "invalid");
    let mut wrong = kernel("k", 1000.0, 0.005);
    wrong.verification.verified = Some(false);
    assert_eq!(report(&old, &[wrong]).lines[0].verdict(), "invalid");
}

#[test]
fn senseless_samples_have_no_verdict() {
    for samples in [vec![], vec![1.0], vec![f64::NAN, 1.0], vec![0.0, 1.0]] {
        let mut odd = kernel("k", 1.0, 0.0);
        odd.timing.samples_ns = Some(samples);
        assert_eq!(report(&[kernel("k", 1.0, 0.0)], &[odd]).lines[0].verdict(), "no samples");
    }
    let huge = [kernel("k", 1e308, 0.0)];
    assert_eq!(report(&huge, &huge).lines[0].verdict(), "same");
}

#[test]
fn machines_that_differ_are_refused_by_name() {
    let mut other = kernel("k", 1.0, 0.0);
    other.environment.cpu_model = Some("Other CPU".into());
    other.workload.n_threads = Some(4);
    let (old, new) = ([kernel("k", 1.0, 0.0)], [other]);
    let error = regression(("old", &old), ("new", &new), &RULES).unwrap_err().to_string();
    assert!(error.contains("cpu_model (Test CPU and Other CPU), threads (2 and 4)"), "{error}");
    assert!(error.contains("--loose machine"));
    let loose = Rules { any_machine: true, ..RULES };
    assert_eq!(regression(("old", &old), ("new", &new), &loose).unwrap().lines[0].verdict(), "same");
    assert!(regression(("old", &[]), ("new", &new), &loose).is_err());
}

#[test]
fn thresholds_are_shares() {
    assert_eq!(parse_threshold("3%").unwrap(), 0.03);
    assert_eq!(parse_threshold("0.03").unwrap(), 0.03);
    assert_eq!(parse_threshold("2.5 %").unwrap(), 0.025);
    assert_eq!((percent(0.03), percent(0.025)), ("3 %".into(), "2.5 %".into()));
    for text in ["3", "nan", "-1%", "x", "", "%", "inf", "1e999%"] {
        assert!(parse_threshold(text).is_err(), "{text}");
    }
}
