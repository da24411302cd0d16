//! Student's distribution: what few samples say of a mean.
//!
//! "Student" (Gosset), "The probable error of a mean", 1908.

use super::{mean, stddev};

/// Standard errors to either side of a mean that make its 95 % interval: the 97.5 % quantile of Student's distribution. Less than one
/// degree of freedom is taken as one.
pub fn student_97_5(freedom: f64) -> f64 {
    /// That of the normal distribution, which it is beyond so many degrees.
    const NORMAL: f64 = 1.959_963_984_540_054;
    let freedom = freedom.max(1.0);
    if freedom > 1e7 {
        return NORMAL;
    }
    let half = 0.5 * (freedom + 1.0);
    let scale =
        libm::lgamma(half) - libm::lgamma(0.5 * freedom) - 0.5 * (freedom * std::f64::consts::PI).ln();
    let density = |t: f64| (scale - half * (t * t / freedom).ln_1p()).exp();
    // The probability outside falls and is convex, so from the normal distribution's quantile, which is always less, Newton's steps only
    // lead upwards.
    let mut t = NORMAL;
    for _ in 0..40 {
        let step = (student_two_sided(t, freedom) - 0.05) / (2.0 * density(t));
        if !step.is_finite() || step < 1e-12 * t {
            break;
        }
        t += step;
    }
    t
}

/// Probability of a value of Student's distribution at least as far from 0 as `t`: the regularised incomplete beta function.
pub(super) fn student_two_sided(t: f64, freedom: f64) -> f64 {
    let x = freedom / (freedom + t * t);
    incomplete_beta(x, freedom / 2.0, 0.5).clamp(0.0, 1.0)
}

/// The same of the normal distribution, for errors that are known.
pub fn normal_two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() / std::f64::consts::SQRT_2)
}

/// An estimate with its standard error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) error: f64,
    /// Degrees of freedom of the error.
    pub(super) freedom: f64,
}

impl Estimate {
    /// Of a mean. `None` with fewer than two samples or samples that are not finite.
    pub(super) fn mean(samples: &[f64]) -> Option<Self> {
        let n = samples.len() as f64;
        Some(Self { value: mean(samples)?, error: stddev(samples)? / n.sqrt(), freedom: n - 1.0 })
    }

    /// Half the width of the 95 % interval.
    pub(super) fn half(&self) -> f64 {
        if self.error > 0.0 { student_97_5(self.freedom) * self.error } else { 0.0 }
    }

    /// Two-sided p-value of the truth being 0.
    pub(super) fn p_value(&self) -> f64 {
        match self.error > 0.0 {
            true => student_two_sided(self.value / self.error, self.freedom),
            false if self.value == 0.0 => 1.0,
            false => 0.0,
        }
    }
}

/// I_x(a, b) by its continued fraction (Abramowitz and Stegun, 26.5.8), evaluated after Lentz.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a); // where the fraction converges quickly
    }
    let front = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * x.ln() + b * (1.0 - x).ln();
    let away = |value: f64| if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for i in 1..1000 {
        let m = f64::from(i);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            fraction *= c * d;
        }
        if (fraction / before - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front.exp() * fraction / a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 1e-9, "{value} is not {expected}");
    }

    /// Closed forms: of one degree of freedom the distribution is Cauchy's, of two it is algebraic.
    #[test]
    fn students_distribution() {
        for t in [0.1f64, 1.0, 3.0, 12.706, 1e3] {
            near(student_two_sided(t, 1.0), 1.0 - 2.0 / std::f64::consts::PI * t.atan());
            near(student_two_sided(t, 2.0), {
                let s = (2.0 + t * t).sqrt();
                2.0 / (s * (s + t))
            });
        }
        // any table has these
        for (t, freedom) in [(2.776, 4.0), (2.228, 10.0), (2.042, 30.0)] {
            assert!((student_two_sided(t, freedom) - 0.05).abs() < 1e-4);
        }
        assert_eq!((student_two_sided(0.0, 5.0), student_two_sided(f64::INFINITY, 5.0)), (1.0, 0.0));
    }

    #[test]
    fn quantiles() {
        near(student_97_5(1.0), (0.475 * std::f64::consts::PI).tan());
        near(student_97_5(2.0), 0.95 * (2.0f64 / (1.0 - 0.95f64.powi(2))).sqrt());
        for (freedom, t) in
            [(3.0, 3.182), (4.0, 2.776), (10.0, 2.228), (30.0, 2.042), (60.0, 2.000), (120.0, 1.980)]
        {
            assert!((student_97_5(freedom) - t).abs() < 6e-4, "{freedom}: {}", student_97_5(freedom));
        }
        assert!((student_97_5(1e6) - 1.96).abs() < 1e-4);
        assert!((student_97_5(f64::INFINITY) - 1.96).abs() < 1e-4);
        assert_eq!(student_97_5(f64::NAN), student_97_5(1.0));
        assert!(student_97_5(2.5) < student_97_5(2.0) && student_97_5(2.5) > student_97_5(3.0));
    }
}
