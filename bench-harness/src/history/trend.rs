//! How a series went: the change from one record to the next, with a verdict, and a line of blocks.

use perjoule_record::Interval;
use perjoule_record::stats::Verdict;

use super::facts::Metric;
use crate::compare::regression::FAIL_ON;
use crate::compare::row::Quantity;

/// Most blocks of a line.
const WIDTH: usize = 60;

/// A record's figure beside that of the record before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Change {
    /// New over old.
    pub(crate) ratio: f64,
    /// 95 % interval of `ratio`, where both figures have one.
    pub(crate) ci95: Option<[f64; 2]>,
    /// `faster`, `slower`, `same` or `unclear`; of joules `less` or `more`.
    pub(crate) word: &'static str,
}

/// Compares two figures. The interval of their ratio is made of theirs (Zou and Donner, "Construction of confidence limits about effect
/// measures", 2008): on the logarithms, whose differences it is, the distances to the ends add up as squares.
pub(crate) fn change(metric: Metric, old: Quantity, new: Quantity) -> Change {
    let ratio = new.value / old.value;
    let ci95 = old.interval.zip(new.interval).and_then(|(of_old, of_new)| {
        let distance = |a: f64, b: f64| (a / b).ln();
        let down = distance(new.value, of_new[0]).hypot(distance(of_old[1], old.value));
        let up = distance(of_new[1], new.value).hypot(distance(old.value, of_old[0]));
        let ends = [ratio * (-down).exp(), ratio * up.exp()];
        ends.iter().all(|end| end.is_finite() && *end > 0.0).then_some(ends)
    });
    let verdict = ci95.map_or(Verdict::Unclear, |[lo, hi]| {
        // of a rate the time is the inverse
        let [lo, hi] = if metric.is_rate() { [1.0 / hi, 1.0 / lo] } else { [lo, hi] };
        Verdict::of(Interval { lo, hi }, FAIL_ON)
    });
    let word = match (verdict, metric) {
        (Verdict::Faster, Metric::Joules) => "less",
        (Verdict::Slower, Metric::Joules) => "more",
        (Verdict::Faster, _) => "faster",
        (Verdict::Slower, _) => "slower",
        (Verdict::Same, _) => "same",
        (Verdict::Unclear, _) => "unclear",
    };
    Change { ratio, ci95, word }
}

/// The values as blocks from the least to the greatest, oldest first. Of more than fit, the newest.
pub(crate) fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values = &values[values.len().saturating_sub(WIDTH)..];
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let range = values.iter().copied().fold(0.0, f64::max) - least;
    let block = |value: &f64| match (value - least) / range {
        share if share.is_finite() => BLOCKS[((share * 7.0).round() as usize).min(7)],
        _ => BLOCKS[3], // all are equal
    };
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, half: f64) -> Quantity {
        Quantity { value, interval: Some([value - half, value + half]) }
    }

    #[test]
    fn verdicts_follow_from_the_intervals() {
        for (metric, old, new, word) in [
            (Metric::Time, figure(100.0, 1.0), figure(110.0, 1.0), "slower"),
            (Metric::Tokens, figure(100.0, 1.0), figure(110.0, 1.0), "faster"),
            (Metric::Joules, figure(100.0, 1.0), figure(90.0, 1.0), "less"),
            (Metric::Time, figure(100.0, 1.0), figure(101.0, 1.0), "same"),
            (Metric::Time, figure(100.0, 20.0), figure(110.0, 20.0), "unclear"),
            (Metric::Gflops, figure(100.0, 1.0), figure(90.0, 1.0), "slower"),
            (Metric::Time, Quantity { value: 100.0, interval: None }, figure(200.0, 1.0), "unclear"),
            (
                Metric::Tokens,
                Quantity { value: 1.0, interval: Some([0.0, 2.0]) },
                figure(2.0, 0.1),
                "unclear",
            ),
        ] {
            assert_eq!(change(metric, old, new).word, word, "{metric:?} {old:?} {new:?}");
        }
        // for small intervals the ratio's is that of the usual propagation of errors
        let [lo, hi] = change(Metric::Time, figure(100.0, 0.3), figure(200.0, 0.8)).ci95.unwrap();
        let half = 2.0 * (0.003f64.powi(2) + 0.004f64.powi(2)).sqrt();
        assert!(((hi - lo) / 2.0 / half - 1.0).abs() < 0.01, "{lo} {hi} {half}");
    }

    #[test]
    fn a_line_of_blocks_spans_the_values() {
        assert_eq!(sparkline(&[1.0, 4.5, 8.0]), "▁▅█");
        assert_eq!(sparkline(&[5.0, 5.0]), "▄▄");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[1e308, 1e-308]).chars().count(), 2);
        assert_eq!(sparkline(&vec![1.0; 500]).chars().count(), WIDTH);
    }
}
