//! Least-squares fits of a group of values to a grid of small integers, for the formats whose groups share a
//! block's scale.
//!
//! The searches are those of llama.cpp's reference quantisers: a few trial grids, each refitted in closed
//! form, the best kept. Sums run in element order in `f32` without contraction.

/// Fits `values` to `scale * code - minimum` with codes 0..=15 and a `minimum` of at least 0, minimising the
/// squared errors times `weights`.
///
/// Writes the codes and returns `(scale, minimum)`. The grid always holds zero, or lies below it.
pub(super) fn fit_affine<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    codes: &mut [u8; N],
) -> (f32, f32) {
    const TOP: f32 = 15.0;
    // Trial grids of 14 to 16 steps over the range of the values.
    const TRIALS: usize = 21;
    const FIRST: f32 = -1.0;
    const STRIDE: f32 = 0.1;

    // Comparisons instead of `min` and `max`, which leave the sign of a zero open.
    let mut low = values.iter().fold(0f32, |m, &v| if v < m { v } else { m });
    let high = values.iter().fold(values[0], |m, &v| if v > m { v } else { m });
    if high == low {
        codes.fill(0);
        return (0.0, -low);
    }
    let sum_w: f32 = weights.iter().sum();
    let sum_x: f32 = weights.iter().zip(values).map(|(w, x)| w * x).sum();
    let quantised = |inverse: f32, low: f32| {
        values.map(|x| (inverse * (x - low)).round_ties_even().clamp(0.0, TOP) as u8)
    };
    let error = |codes: &[u8; N], scale: f32, low: f32| -> f32 {
        codes
            .iter()
            .zip(values)
            .zip(weights)
            .map(|((&l, x), w)| {
                let difference = scale * f32::from(l) + low - x;
                w * (difference * difference)
            })
            .sum()
    };

    let inverse = TOP / (high - low);
    let mut scale = 1.0 / inverse;
    *codes = quantised(inverse, low);
    let mut best = error(codes, scale, low);
    for trial in 0..TRIALS {
        // The range shrinks or grows with the best fit so far.
        let inverse = (FIRST + STRIDE * trial as f32 + TOP) / (high - low);
        let candidate = quantised(inverse, low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((&l, x), w) in candidate.iter().zip(values).zip(weights) {
            let l = f32::from(l);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut fitted_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if fitted_low > 0.0 {
                fitted_low = 0.0;
                fitted_scale = sum_xl / sum_l2;
            }
            let fitted_error = error(&candidate, fitted_scale, fitted_low);
            if fitted_error < best {
                (best, scale, low, *codes) = (fitted_error, fitted_scale, fitted_low, candidate);
            }
        }
    }
    (scale, -low)
}

/// Quantises non-negative group scales to 0..=`top`: returns the scale of the scales and their codes.
pub(super) fn scale_to_codes<const N: usize>(scales: &[f32; N], top: u8) -> (f32, [u8; N]) {
    let largest = scales.iter().fold(0f32, |m, &s| if s > m { s } else { m });
    let inverse = if largest > 0.0 { f32::from(top) / largest } else { 0.0 };
    (largest / f32::from(top), scales.map(|s| ((inverse * s).round_ties_even() as u8).min(top)))
}

/// Fits `values` to `scale * (code - 32)` with codes 0..=63, minimising the squared errors weighted with the
/// squares of the values.
///
/// Writes the codes and returns the scale, which may be negative: 0, with codes 0, for values that are
/// (nearly) all zero.
pub(super) fn fit_symmetric<const N: usize>(values: &[f32; N], codes: &mut [u8; N]) -> f32 {
    const HALF: f32 = 32.0;
    const SMALLEST: f32 = 1e-15;
    // Trial grids whose extreme element maps to -32.9 to -31.1.
    const TRIALS: i32 = 9;
    const STRIDE: f32 = 0.1;

    let extreme = values.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    if extreme.abs() < SMALLEST {
        codes.fill(0);
        return 0.0;
    }
    let quantised = |inverse: f32| values.map(|x| (inverse * x).round_ties_even().clamp(-HALF, HALF - 1.0));
    // Sums of w x l and w l l: their quotient is the best scale for these codes.
    let sums = |levels: &[f32; N]| {
        levels.iter().zip(values).fold((0f32, 0f32), |(xl, l2), (l, x)| {
            let w = x * x;
            (xl + w * x * l, l2 + w * l * l)
        })
    };
    let store = |levels: [f32; N]| levels.map(|l| (l + HALF) as u8);

    let levels = quantised(-HALF / extreme);
    let (sum_xl, sum_l2) = sums(&levels);
    *codes = store(levels);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for trial in (-TRIALS..=TRIALS).filter(|&t| t != 0) {
        let levels = quantised(-(HALF + STRIDE * trial as f32) / extreme);
        let (sum_xl, sum_l2) = sums(&levels);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            *codes = store(levels);
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    scale
}
