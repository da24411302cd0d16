//! Many tests at once: of 10,000 comparisons of equals, 500 have a p-value below 0.05.

/// The p-values adjusted by Benjamini and Hochberg ("Controlling the false discovery rate", 1995): where those up to q are called
/// discoveries, the expected share of false ones among them is at most q, for tests that are independent or positively dependent.
/// Of a single one it is the value itself. Values outside [0, 1] and NaN count as 1.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let p: Vec<f64> = p_values.iter().map(|&p| if (0.0..=1.0).contains(&p) { p } else { 1.0 }).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_unstable_by(|&a, &b| p[b].total_cmp(&p[a]));
    let n = p.len() as f64;
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 1.0f64;
    for (i, &at) in order.iter().enumerate() {
        least = least.min(p[at] * n / (n - i as f64));
        adjusted[at] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::benjamini_hochberg;

    /// The example of their paper, table 1: at 0.05 the four smallest are discoveries, where Bonferroni has three.
    #[test]
    fn the_example_of_the_paper() {
        let p = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
            0.6528, 0.7590, 1.0,
        ];
        let q = benjamini_hochberg(&p);
        assert_eq!(q.iter().filter(|q| **q <= 0.05).count(), 4);
        assert!((q[0] - 0.0015).abs() < 1e-12 && (q[3] - 0.0095 * 15.0 / 4.0).abs() < 1e-12);
        let turned: Vec<f64> = p.iter().rev().copied().collect();
        assert_eq!(benjamini_hochberg(&turned), q.into_iter().rev().collect::<Vec<_>>(), "in any order");
    }

    #[test]
    fn odd_values() {
        assert_eq!(benjamini_hochberg(&[]), [0.0; 0]);
        assert_eq!(benjamini_hochberg(&[0.03]), [0.03]);
        assert_eq!(benjamini_hochberg(&[f64::NAN, 0.0, 7.0]), [1.0, 0.0, 1.0]);
        assert_eq!(benjamini_hochberg(&[0.02, 0.02]), [0.02, 0.02]);
    }
}
