//! Calibration: the weights of the terms of a time, the effects of classes and families, and the width of bands.
//!
//! Everything is fitted in logarithms and is deterministic: the same rows give the same model.

use crate::workload::Terms;

/// Weights of [`Terms`], in its order.
pub(crate) type Weights = [f64; 5];

/// What a weight cannot go below. Those of traffic and FLOP cannot be faster than the roof.
const FLOOR: Weights = [1.0, 1.0, 1.0, 0.0, 0.0];
/// Where the search starts, and what weights fall back to where rows say nothing: half as fast again as the roof, 30 us a layer and sequence.
const START: Weights = [1.5, 1.7, 2.3, 33e-6, 33e-6];
/// Strength of the pull to [`START`]: as much as a fiftieth of a class.
const RIDGE: f64 = 0.02;
/// How the variance between classes divides into one between families and one within them. Rows are too few to tell; the bands hold
/// for shares from 0.2 to 0.8.
const FAMILY_SHARE: f64 = 0.5;
/// A variance between classes below this is not believed: a tenth either way.
const LEAST_BETWEEN: f64 = 0.01;
/// Share of new values that a band covers.
pub(crate) const COVERAGE: f64 = 0.9;

/// One row as the fit sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub class: String,
    pub family: String,
    pub model: String,
    /// Prefill and generation are apart: what a class does well with the one says little about the other.
    pub prefill: bool,
    pub terms: Terms,
    /// Logarithm of tokens/s.
    pub log_rate: f64,
    pub power: Option<PowerSample>,
}

/// The power of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PowerSample {
    /// Logarithm of watts over the TDP of all devices.
    pub log_share: f64,
    /// That TDP in watts.
    pub tdp: f64,
    /// Whether the watts are of the whole machine at the wall.
    pub wall: bool,
}

/// Seconds per token, not faster than the roof.
pub(crate) fn seconds(weights: &Weights, terms: &Terms) -> f64 {
    let parts = parts(weights, terms);
    parts.iter().sum()
}

/// The weighted terms.
pub(crate) fn parts(weights: &Weights, t: &Terms) -> Weights {
    [
        weights[0] * t.memory,
        weights[1] * t.compute,
        weights[2] * t.prefill,
        weights[3] * t.layers,
        weights[4] * t.sequences,
    ]
}

/// Least squares by Levenberg and Marquardt with numeric derivatives.
fn minimise<const N: usize>(mut at: [f64; N], residuals: impl Fn(&[f64; N]) -> Vec<f64>) -> [f64; N] {
    const STEP: f64 = 1e-4;
    let norm = |r: &[f64]| r.iter().map(|x| x * x).sum::<f64>();
    let mut r = residuals(&at);
    let mut cost = norm(&r);
    let mut damping = 1e-2;
    for _ in 0..100 {
        let mut jacobian = vec![[0.0; N]; r.len()];
        for j in 0..N {
            let mut near = at;
            near[j] += STEP;
            for (row, (moved, still)) in jacobian.iter_mut().zip(residuals(&near).iter().zip(&r)) {
                row[j] = (moved - still) / STEP;
            }
        }
        let mut normal = [[0.0; N]; N];
        let mut gradient = [0.0; N];
        for (row, residual) in jacobian.iter().zip(&r) {
            for a in 0..N {
                gradient[a] -= row[a] * residual;
                for b in 0..N {
                    normal[a][b] += row[a] * row[b];
                }
            }
        }
        let mut gained = 0.0;
        for _ in 0..12 {
            let mut damped = normal;
            for (a, row) in damped.iter_mut().enumerate() {
                row[a] += damping * (normal[a][a] + 1e-9);
            }
            let step = solve(damped, gradient);
            let mut next = at;
            for (x, s) in next.iter_mut().zip(step) {
                *x += s;
            }
            let next_r = residuals(&next);
            let next_cost = norm(&next_r);
            if next_cost < cost {
                gained = cost - next_cost;
                (at, r, cost) = (next, next_r, next_cost);
                damping = (damping / 3.0).max(1e-9);
                break;
            }
            damping *= 4.0;
        }
        if gained <= 1e-10 * cost {
            break;
        }
    }
    at
}

/// Gaussian elimination of a positive definite system.
fn solve<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> [f64; N] {
    for i in 0..N {
        let pivot = a[i];
        for k in i + 1..N {
            let factor = a[k][i] / pivot[i];
            for (x, p) in a[k].iter_mut().zip(pivot) {
                *x -= factor * p;
            }
            b[k] -= factor * b[i];
        }
    }
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
}

/// One over the square root of the rows that a class has, so that a class with many does not outvote the rest.
fn class_weights(samples: &[&Sample]) -> Vec<f64> {
    samples
        .iter()
        .map(|s| {
            let rows = samples.iter().filter(|other| other.class == s.class).count();
            1.0 / libm::sqrt(rows as f64)
        })
        .collect()
}

/// The weights that samples of all classes share.
pub(crate) fn fit_weights(samples: &[&Sample]) -> Weights {
    let of = |theta: &Weights| -> Weights { std::array::from_fn(|i| FLOOR[i] + libm::exp(theta[i])) };
    let start: Weights = std::array::from_fn(|i| libm::log(START[i] - FLOOR[i]));
    let votes = class_weights(samples);
    let theta = minimise(start, |theta| {
        let weights = of(theta);
        let rows = samples
            .iter()
            .zip(&votes)
            .map(|(s, vote)| libm::sqrt(*vote) * (s.log_rate + libm::log(seconds(&weights, &s.terms))));
        let pull = theta.iter().zip(&start).map(|(x, x0)| libm::sqrt(RIDGE) * (x - x0));
        rows.chain(pull).collect()
    });
    of(&theta)
}

/// Residuals of one class in one regime.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    class: String,
    family: String,
    regime: u8,
    residuals: Vec<f64>,
}

impl Group {
    fn mean(&self) -> f64 {
        self.residuals.iter().sum::<f64>() / self.residuals.len() as f64
    }
}

/// Effects of classes and families on a logarithm: what their residuals say, shrunk by how little that is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Effects {
    groups: Vec<Group>,
    /// Variance within a class and regime.
    within: f64,
    /// Variance between classes.
    between: f64,
}

/// The effect of one class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Effect {
    /// To add to the logarithm.
    pub shift: f64,
    /// Standard deviation of one new row.
    pub sd: f64,
    /// Rows of the class itself.
    pub own: usize,
    /// Other classes of its family.
    pub relatives: usize,
}

impl Effects {
    pub(crate) fn new<'a>(rows: impl Iterator<Item = (&'a str, &'a str, u8, f64)>) -> Effects {
        let mut groups: Vec<Group> = Vec::new();
        for (class, family, regime, residual) in rows {
            match groups.iter_mut().find(|g| g.class == class && g.regime == regime) {
                Some(group) => group.residuals.push(residual),
                None => groups.push(Group {
                    class: class.into(),
                    family: family.into(),
                    regime,
                    residuals: vec![residual],
                }),
            }
        }
        // moments: the mean square of a class's mean is the variance between classes and its share of that within
        let rows: usize = groups.iter().map(|g| g.residuals.len()).sum();
        let freedom = (rows - groups.len()).max(1) as f64;
        let squares = |g: &Group| g.residuals.iter().map(|r| (r - g.mean()) * (r - g.mean())).sum::<f64>();
        let within = groups.iter().map(squares).sum::<f64>() / freedom;
        let count = groups.len().max(1) as f64;
        let means = groups.iter().map(|g| g.mean() * g.mean()).sum::<f64>() / count;
        let noise = groups.iter().map(|g| within / g.residuals.len() as f64).sum::<f64>() / count;
        Effects { groups, within, between: (means - noise).max(LEAST_BETWEEN) }
    }

    /// The effect of a class, known or not.
    pub(crate) fn of(&self, class: &str, family: &str, regime: u8) -> Effect {
        let same = self.groups.iter().filter(|g| g.regime == regime);
        let (own, others): (Vec<&Group>, Vec<&Group>) = same.partition(|g| g.class == class);
        let relatives: Vec<&&Group> =
            others.iter().filter(|g| !family.is_empty() && g.family == family).collect();
        let of_family = self.between * FAMILY_SHARE;
        let of_class = self.between - of_family;
        let (mut shift, mut variance) = (0.0, self.between);
        if !relatives.is_empty() {
            // a relative's mean is the family's effect, its own, and the noise of two rows or so
            let n = relatives.len() as f64;
            let pull = n / (n + (of_class + self.within / 2.0) / of_family);
            shift = pull * relatives.iter().map(|g| g.mean()).sum::<f64>() / n;
            variance = of_family * (1.0 - pull) + of_class;
        }
        let rows = own.first().map_or(0, |g| g.residuals.len());
        if let Some(group) = own.first() {
            let pull = variance / (variance + self.within / rows as f64);
            shift += pull * (group.mean() - shift);
            variance *= 1.0 - pull;
        }
        Effect { shift, sd: libm::sqrt(self.within + variance), own: rows, relatives: relatives.len() }
    }
}

/// Share of the TDP that boards draw: idle, and a part that saturates with what the memory and the arithmetic do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PowerCurve {
    /// Share at rest.
    pub idle: f64,
    /// Share added at full use of memory.
    pub busy: f64,
    /// What a share of the arithmetic weighs against the same share of bandwidth.
    pub arithmetic: f64,
}

impl PowerCurve {
    pub(crate) fn share(&self, rate: f64, terms: &Terms) -> f64 {
        let use_ = rate * (terms.memory + self.arithmetic * (terms.compute + terms.prefill));
        (self.idle + self.busy * libm::sqrt(use_)).min(1.0)
    }

    /// Fitted to rows with the power of boards, at the rates they had.
    pub(crate) fn fit(samples: &[&Sample]) -> PowerCurve {
        let start = [0.1f64, 0.8, 6.0].map(libm::log);
        let rows: Vec<(&&Sample, f64)> =
            samples.iter().filter_map(|s| s.power.filter(|p| !p.wall).map(|p| (s, p.log_share))).collect();
        let of = |x: &[f64; 3]| {
            let [idle, busy, arithmetic] = x.map(libm::exp);
            PowerCurve { idle, busy, arithmetic }
        };
        let theta = minimise(start, |theta| {
            let curve = of(theta);
            let errors =
                rows.iter().map(|(s, share)| share - libm::log(curve.share(libm::exp(s.log_rate), &s.terms)));
            let pull = theta.iter().zip(&start).map(|(x, x0)| libm::sqrt(RIDGE) * (x - x0));
            errors.chain(pull).collect()
        });
        of(&theta)
    }
}

/// Errors over the standard deviations that were claimed, in clusters that stand or fall together: a class, or a model on a class.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    /// Every error with the share of its cluster that it is.
    errors: Vec<(f64, f64)>,
    count: usize,
}

impl Clusters {
    pub(crate) fn push(&mut self, cluster: &[f64]) {
        let share = 1.0 / cluster.len() as f64;
        self.errors.extend(cluster.iter().map(|error| (*error, share)));
        self.count += usize::from(!cluster.is_empty());
    }

    pub(crate) fn append(&mut self, other: Clusters) {
        self.errors.extend(other.errors);
        self.count += other.count;
    }

    /// The factor that makes a band of a standard deviation: the quantile of errors that covers [`COVERAGE`] of a new cluster. The new
    /// one is counted among them and above them all, so that few clusters make wide bands.
    pub(crate) fn factor(mut self) -> f64 {
        // the factor of a normal distribution, where there are no errors to ask
        const NORMAL: f64 = 1.645;
        self.errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let goal = COVERAGE * (self.count + 1) as f64 * (1.0 - 1e-12);
        let mut sum = 0.0;
        for (error, share) in &self.errors {
            sum += share;
            if sum >= goal {
                return *error;
            }
        }
        self.errors.last().map_or(NORMAL, |(error, _)| *error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_squares_finds_an_exponential() {
        let data: Vec<(f64, f64)> =
            (0..20).map(|i| f64::from(i) / 5.0).map(|x| (x, 3.0 * libm::exp(-0.7 * x))).collect();
        let [a, k] =
            minimise([1.0, 0.1], |[a, k]| data.iter().map(|(x, y)| y - a * libm::exp(-k * x)).collect());
        assert!((a - 3.0).abs() < 1e-6 && (k - 0.7).abs() < 1e-6, "{a} {k}");
    }

    #[test]
    fn effects_shrink_with_few_rows_and_grow_certain_with_many() {
        let rows = |class: &'static str, mean: f64, n: usize| {
            (0..n).map(move |i| (class, "f", 0, mean + if i % 2 == 0 { 0.1 } else { -0.1 }))
        };
        let effects =
            Effects::new(rows("many", 0.5, 20).chain(rows("few", -0.5, 2)).chain(rows("other", 0.1, 4)));
        let (many, few, none) =
            (effects.of("many", "f", 0), effects.of("few", "f", 0), effects.of("new", "g", 0));
        assert!((many.shift - 0.5).abs() < 0.05 && many.own == 20 && many.relatives == 2);
        assert!(few.shift > -0.5 && few.shift < -0.3);
        assert!(many.sd < few.sd && few.sd < none.sd);
        assert_eq!(none.shift, 0.0);
    }

    #[test]
    fn the_band_covers_what_it_says() {
        let mut clusters = Clusters::default();
        (1..=99).for_each(|i| clusters.push(&[f64::from(i), f64::from(i)]));
        assert_eq!(clusters.factor(), 90.0);
        let mut few = Clusters::default();
        few.push(&[1.0, 3.0]);
        assert_eq!(few.factor(), 3.0);
        assert!(Clusters::default().factor() > 1.6);
    }
}
