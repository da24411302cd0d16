//! Welch's t-test: do two sets of samples have one mean? For few samples, of which ranks cannot tell much.
//!
//! Welch, "The generalization of 'Student's' problem when several different population variances are involved", 1947.

use super::student::Estimate;

/// Two-sided p-value of Welch's test. `None` with fewer than two samples on a side, or values that are not finite.
pub fn welch(a: &[f64], b: &[f64]) -> Option<f64> {
    let p = difference(a, b)?.p_value();
    p.is_finite().then_some(p)
}

/// The mean of `a` less that of `b`, with Satterthwaite's degrees of freedom.
pub(super) fn difference(a: &[f64], b: &[f64]) -> Option<Estimate> {
    let (of_a, of_b) = (Estimate::mean(a)?, Estimate::mean(b)?);
    let error = of_a.error.hypot(of_b.error);
    // in shares of the sum, so that squares of squares do not vanish
    let part = |of: Estimate| (of.error / error).powi(4) / of.freedom;
    let freedom = 1.0 / (part(of_a) + part(of_b));
    Some(Estimate { value: of_a.value - of_b.value, error, freedom })
}

#[cfg(test)]
mod tests {
    use super::super::student::student_two_sided;
    use super::*;

    #[test]
    fn samples() {
        // Equal variances and numbers: Student's own test, t = 1 / (sqrt(2.5 / 5 * 2)) = 1 with 8 degrees of freedom.
        let p = welch(&[1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert!((p / student_two_sided(1.0, 8.0) - 1.0).abs() < 1e-9, "{p}");
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
