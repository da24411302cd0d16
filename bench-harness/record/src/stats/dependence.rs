//! How far samples in the order in which they were taken depend on each other.

/// What [`dependence`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dependence {
    /// Runs of neighbours that a circular block bootstrap should draw, in samples; not rounded, may be below 1.
    pub block: f64,
    /// The variance of the samples' mean over that of as many independent samples, at least 1: so many samples are worth one.
    pub inflation: f64,
}

/// Block length and inflation of the variance by the rule of Politis and White ("Automatic block-length selection for the dependent
/// bootstrap", 2004) as corrected by Patton, Politis and White (2009): a flat-top window over the autocovariances up to twice the lag
/// after which none is significant.
///
/// `None` for fewer than eight samples, or one that is not finite.
pub fn dependence(samples: &[f64]) -> Option<Dependence> {
    let n = samples.len();
    if n < 8 || !samples.iter().all(|x| x.is_finite()) {
        return None;
    }
    let mean = super::mean(samples)?;
    let apart: Vec<f64> = samples.iter().map(|x| x - mean).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let length = n as f64;
    // so many insignificant autocorrelations in a row end the search
    let row = ((length.log10() as usize).max(5)).min(n - 3);
    let most = (length.sqrt().ceil() as usize + row).min(n - 2);
    let significant = 2.0 * (length.log10() / length).sqrt();
    let mut covariances = Vec::new();
    let mut quiet = 0;
    let mut last = None;
    for lag in 0..=most {
        let cross = dot(&apart[lag..], &apart[..n - lag]);
        covariances.push(cross / length);
        if lag >= row && quiet >= row && last.is_none() {
            last = Some(lag - row);
        }
        // lags up to twice the last are looked at below
        if last.is_some_and(|last| lag >= 2 * last.max(1)) {
            break;
        }
        let (late, early) = (&apart[lag + 1..], &apart[..n - lag - 1]);
        let scale = (dot(late, late) * dot(early, early)).sqrt();
        quiet = if cross.abs() < significant * scale { quiet + 1 } else { 0 };
    }
    let window = last.map_or(most, |last| 2 * last.max(1)).min(covariances.len() - 1);
    if covariances[0] <= 0.0 {
        return Some(Dependence { block: 1.0, inflation: 1.0 });
    }
    let (mut spread, mut long_run) = (0.0, covariances[0]);
    for (lag, covariance) in covariances.iter().enumerate().take(window + 1).skip(1) {
        let share = lag as f64 / window as f64;
        let weight = if share <= 0.5 { 1.0 } else { 2.0 * (1.0 - share) };
        spread += 2.0 * weight * lag as f64 * covariance;
        long_run += 2.0 * weight * covariance;
    }
    let longest = (3.0 * length.sqrt()).min(length / 3.0).ceil();
    let block = (1.5 * (spread / long_run).powi(2) * length).cbrt();
    // a window that is not positive definite may give a variance of nothing: then nothing is known, and the longest is safe
    let block = if block.is_finite() { block.min(longest) } else { longest };
    Some(Dependence { block, inflation: (long_run / covariances[0]).max(1.0) })
}

/// The inflation that a block bootstrap with runs of `run` samples shows: pairs across the ends of runs count as independent, so it is
/// less than [`Dependence::inflation`] (Künsch, "The jackknife and the bootstrap for general stationary observations", 1989).
pub(super) fn inflation_of_runs(samples: &[f64], run: usize) -> Option<f64> {
    let mean = super::mean(samples)?;
    let covariance = |lag: usize| {
        let pairs = samples.iter().zip(&samples[lag..]);
        pairs.map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>()
    };
    let variance = covariance(0);
    let of_lag = |lag: usize| 2.0 * (1.0 - lag as f64 / run as f64) * covariance(lag) / variance;
    (variance > 0.0).then(|| 1.0 + (1..run.min(samples.len())).map(of_lag).sum::<f64>())
}

/// How many of these samples, in the order in which they were taken, are worth one independent one: at least 1, and 1 of fewer than 20, of
/// which nothing is known.
///
/// From the autocovariances of the ranks, summed in pairs for as long as they are positive and falling (the initial monotone sequence of
/// Geyer, "Practical Markov chain Monte Carlo", 1992). For memories that are no small part of the samples it misses less than the window of
/// [`dependence`], and ranks depend a little more than sides of the median do: a comparison of two sets errs on the safe side.
pub(super) fn inflation(samples: &[f64]) -> f64 {
    const FEWEST: usize = 20;
    let n = samples.len();
    if n < FEWEST {
        return 1.0;
    }
    let centred = centred_ranks(samples);
    let covariance = |lag: usize| centred[lag..].iter().zip(&centred).map(|(a, b)| a * b).sum::<f64>();
    let variance = covariance(0);
    // Independent samples seldom look alike by so much, and would otherwise often count for less than they are.
    if covariance(1) * (n as f64).sqrt() <= 2.0 * variance {
        return 1.0;
    }
    let (mut sum, mut least) = (-1.0, f64::INFINITY);
    for lag in (0..n / 2).step_by(2) {
        let pair = (covariance(lag) + covariance(lag + 1)) / variance;
        if pair <= 0.0 {
            break;
        }
        least = pair.min(least);
        sum += 2.0 * least;
    }
    // covariances about the samples' own mean are too small by what that mean scatters
    let missed = (sum / n as f64).clamp(0.0, 0.9);
    (sum / (1.0 - missed)).max(1.0)
}

/// Ranks less their mean; equal samples share theirs.
fn centred_ranks(samples: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_unstable_by(|&a, &b| samples[a].total_cmp(&samples[b]));
    let middle = 0.5 * (samples.len() - 1) as f64;
    let (mut ranks, mut before) = (vec![0.0; samples.len()], 0);
    for ties in order.chunk_by(|&a, &b| samples[a] == samples[b]) {
        let rank = before as f64 + 0.5 * (ties.len() - 1) as f64 - middle;
        ties.iter().for_each(|&i| ranks[i] = rank);
        before += ties.len();
    }
    ranks
}
