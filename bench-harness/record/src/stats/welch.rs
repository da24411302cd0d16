//! Welch's t-test: do two sets of samples have one mean? For few samples, of which ranks cannot tell much.
//!
//! Welch, "The generalization of 'Student's' problem when several different population variances are involved", 1947.

use super::{mean, stddev};

/// Two-sided p-value of Welch's test. `None` with fewer than two samples on a side, or values that are not finite.
pub fn welch(a: &[f64], b: &[f64]) -> Option<f64> {
    let of = |samples: &[f64]| Some((mean(samples)?, stddev(samples)?.powi(2) / samples.len() as f64));
    let ((mean_a, error_a), (mean_b, error_b)) = (of(a)?, of(b)?);
    let (difference, error) = ((mean_a - mean_b).abs(), error_a + error_b);
    if error <= 0.0 {
        return Some(if difference == 0.0 { 1.0 } else { 0.0 });
    }
    let part = |error: f64, n: usize| error * error / (n - 1) as f64;
    // Satterthwaite's degrees of freedom
    let freedom = error * error / (part(error_a, a.len()) + part(error_b, b.len()));
    let p = student_two_sided(difference / error.sqrt(), freedom);
    p.is_finite().then_some(p)
}

/// Probability of a value of Student's distribution at least as far from 0 as `t`: the regularised incomplete beta function.
fn student_two_sided(t: f64, freedom: f64) -> f64 {
    let x = freedom / (freedom + t * t);
    incomplete_beta(x, freedom / 2.0, 0.5).clamp(0.0, 1.0)
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
    fn samples() {
        // Equal variances and numbers: Student's own test, t = 1 / (sqrt(2.5 / 5 * 2)) = 1 with 8 degrees of freedom.
        near(
            welch(&[1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(),
            student_two_sided(1.0, 8.0),
        );
        assert_eq!(welch(&[1.0, 1.0], &[1.0, 1.0]), Some(1.0));
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0]), Some(0.0));
        assert!(
            welch(&[100.0, 101.0, 99.0, 100.5, 99.5], &[150.0, 151.0, 149.0, 150.5, 149.5]).unwrap() < 1e-9
        );
        for bad in [&[1.0][..], &[], &[1.0, f64::NAN], &[f64::INFINITY, 1.0]] {
            assert_eq!(welch(bad, &[1.0, 2.0]), None);
        }
    }
}
