//! The Wilcoxon signed-rank test: does the difference within pairs lean to one side?
//!
//! Wilcoxon, "Individual Comparisons by Ranking Methods", 1945. Pairs without a difference are left out; exact for up to 50 pairs
//! without ties, else by the normal approximation with a correction for ties: the same choice as scipy's `method="auto"`.

/// Number of pairs up to which the distribution of the rank sum is counted out.
const EXACT_UP_TO: usize = 50;

/// Outcome of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wilcoxon {
    /// Sum of the ranks of the positive differences.
    pub w: f64,
    /// Two-sided probability of a `w` at least as far from its mean, if differences lean to neither side. 1 when there are none.
    pub p_value: f64,
}

/// Tests differences, two-sided. `None` when there are no pairs or one difference is not finite.
pub fn wilcoxon(differences: &[f64]) -> Option<Wilcoxon> {
    if differences.is_empty() || !differences.iter().all(|x| x.is_finite()) {
        return None;
    }
    let mut values: Vec<f64> = differences.iter().copied().filter(|x| *x != 0.0).collect();
    values.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = values.len();
    // equal sizes share the mean of their ranks
    let (mut w, mut ties, mut before) = (0.0, 0.0, 0.0);
    for group in values.chunk_by(|a, b| a.abs() == b.abs()) {
        let size = group.len() as f64;
        let positive = group.iter().filter(|x| **x > 0.0).count() as f64;
        w += positive * (before + (size + 1.0) / 2.0);
        ties += size * (size * size - 1.0);
        before += size;
    }
    let exact = ties == 0.0 && n <= EXACT_UP_TO;
    let p_value = if exact { exact_p(w, n) } else { normal_p(w, n as f64, ties) };
    Some(Wilcoxon { w, p_value })
}

/// Twice the probability of the tail that W lies in: each rank is in the sum or not, one half each.
fn exact_p(w: f64, n: usize) -> f64 {
    let most = n * (n + 1) / 2;
    let mut probability = vec![0.0f64; most + 1];
    probability[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..=most).rev() {
            let with = if sum >= rank { probability[sum - rank] } else { 0.0 };
            probability[sum] = 0.5 * (probability[sum] + with);
        }
    }
    let tail = w.min(most as f64 - w) as usize;
    (2.0 * probability[..=tail].iter().sum::<f64>()).min(1.0)
}

fn normal_p(w: f64, n: f64, ties: f64) -> f64 {
    let mean = n * (n + 1.0) / 4.0;
    let variance = (n * (n + 1.0) * (2.0 * n + 1.0) - ties / 2.0) / 24.0;
    if variance <= 0.0 {
        return 1.0; // no pair differs
    }
    libm::erfc((w - mean).abs() / variance.sqrt() / std::f64::consts::SQRT_2)
}
