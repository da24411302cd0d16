//! The Mann-Whitney U test: do two sets of samples come from one distribution?
//!
//! Mann and Whitney, "On a test of whether one of two random variables is stochastically larger than the other", 1947.
//! Exact for small sets without ties, else by the normal approximation with corrections for ties and continuity; the
//! same choice as scipy's `method="auto"`.

use super::student::student_two_sided;

/// The smaller set's size up to which the distribution of U is counted out.
const EXACT_UP_TO: usize = 8;

/// The counting takes O(n m * n m) steps: beyond this many pairs the normal approximation is as good.
const EXACT_PAIRS_UP_TO: usize = 20_000;

/// Outcome of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannWhitney {
    /// Number of pairs (a, b) with a > b, ties counted half.
    pub u: f64,
    /// Two-sided probability of a `u` at least as far from its mean, if both sets come from one distribution.
    pub p_value: f64,
}

/// Tests `a` against `b`, two-sided. `None` if either is empty or holds a value that is not finite.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<MannWhitney> {
    Some(tested(a, b)?.0)
}

/// The two-sided p-value of samples that depend on each other, of which so many of `a` and of `b` are worth one: U scatters more by as
/// much, and how much is known only as well as from so many samples.
pub(super) fn dependent_p_value(a: &[f64], b: &[f64], [of_a, of_b]: [f64; 2]) -> Option<f64> {
    let (test, z) = tested(a, b)?;
    if of_a <= 1.0 && of_b <= 1.0 {
        return Some(test.p_value);
    }
    let (n, m) = (a.len() as f64, b.len() as f64);
    let inflation = (m * of_a + n * of_b) / (n + m);
    let freedom = ((n / of_a).min(m / of_b) - 1.0).max(1.0);
    Some(student_two_sided(z.max(0.0) / inflation.sqrt(), freedom).max(test.p_value))
}

/// The outcome, and how many standard deviations that is.
fn tested(a: &[f64], b: &[f64]) -> Option<(MannWhitney, f64)> {
    let (n, m) = (a.len(), b.len());
    if n == 0 || m == 0 || !a.iter().chain(b).all(|x| x.is_finite()) {
        return None;
    }
    let mut values: Vec<(f64, bool)> =
        a.iter().map(|&x| (x, true)).chain(b.iter().map(|&x| (x, false))).collect();
    values.sort_unstable_by(|x, y| x.0.total_cmp(&y.0));

    // Equal values share the mean of their ranks. `PartialEq` makes -0 and 0 equal, which total_cmp left adjacent.
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for group in values.chunk_by(|x, y| x.0 == y.0) {
        let size = group.len() as f64;
        let of_a = group.iter().filter(|(_, of_a)| *of_a).count() as f64;
        rank_sum += of_a * (before + (size + 1.0) / 2.0);
        ties += size * (size * size - 1.0);
        before += size;
    }
    let (nf, mf) = (n as f64, m as f64);
    let u = rank_sum - nf * (nf + 1.0) / 2.0;
    let exact = ties == 0.0 && n.min(m) <= EXACT_UP_TO && n * m <= EXACT_PAIRS_UP_TO;
    let p_value = if exact { exact_p(u, n, m) } else { normal_p(u, nf, mf, ties) };
    Some((MannWhitney { u, p_value }, normal_z(u, nf, mf, ties)))
}

/// Twice the probability of the tail that U lies in, from the number of orders that give each U.
fn exact_p(u: f64, n: usize, m: usize) -> f64 {
    let (small, large) = (n.min(m), n.max(m));
    let pairs = n * m;
    // The generating function of U is the Gaussian binomial: the product of (1 - q^(large + i)) / (1 - q^i) for i in
    // 1..=small, kept as probabilities by a factor i / (large + i) so that no count overflows.
    let mut probability = vec![0.0f64; pairs + 1];
    probability[0] = 1.0;
    for i in 1..=small {
        for k in (large + i..=pairs).rev() {
            probability[k] -= probability[k - large - i];
        }
        for k in i..=pairs {
            probability[k] += probability[k - i];
        }
        let scale = i as f64 / (large + i) as f64;
        probability.iter_mut().for_each(|p| *p *= scale);
    }
    let tail = u.min(pairs as f64 - u) as usize;
    (2.0 * probability[..=tail].iter().sum::<f64>()).min(1.0)
}

fn normal_p(u: f64, n: f64, m: f64, ties: f64) -> f64 {
    libm::erfc(normal_z(u, n, m, ties) / std::f64::consts::SQRT_2).min(1.0)
}

/// How many standard deviations U is from its mean, less the correction for continuity.
fn normal_z(u: f64, n: f64, m: f64, ties: f64) -> f64 {
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        return 0.0; // Every value is the same.
    }
    ((u - n * m / 2.0).abs() - 0.5) / variance.sqrt()
}
