//! Scales and their ticks.

use crate::report::units::si;

/// A way from values to pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) log: bool,
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) start: f32,
    pub(crate) end: f32,
}

impl Scale {
    /// A linear scale from 0 where values lie close together, else a logarithmic one; `start` and `end` are pixels.
    pub(crate) fn fitting(values: impl Iterator<Item = f64>, start: f32, end: f32) -> Self {
        let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
        if high / low > 20.0 {
            Scale { log: true, from: low / 1.4, to: high * 1.4, start, end }
        } else {
            let high = if high > 0.0 { high } else { 1.0 };
            Scale { log: false, from: 0.0, to: high * 1.06, start, end }
        }
    }

    /// The pixel of a value, held within the scale.
    pub(crate) fn at(&self, value: f64) -> f32 {
        let value = value.clamp(self.from, self.to);
        let share = if self.log {
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        self.start + share as f32 * (self.end - self.start)
    }

    /// Values with a tick, and their words. `most` bounds their number.
    pub(crate) fn ticks(&self, most: usize) -> Vec<(f64, String)> {
        let values = if self.log { self.decades(most) } else { self.steps(most) };
        values.into_iter().map(|value| (value, word(value))).collect()
    }

    fn steps(&self, most: usize) -> Vec<f64> {
        let rough = (self.to - self.from) / most as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(rough);
        let (first, last) = ((self.from / step).ceil() as i64, (self.to / step).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }

    fn decades(&self, most: usize) -> Vec<f64> {
        let (first, last) = (self.from.log10().floor() as i32, self.to.log10().ceil() as i32);
        let of = |factors: &[f64], every: i32| -> Vec<f64> {
            let powers = (first..=last).filter(|power| power % every == 0);
            let values = powers.flat_map(|power| factors.iter().map(move |m| m * 10f64.powi(power)));
            values.filter(|value| (self.from..=self.to).contains(value)).collect()
        };
        let fits = |list: &Vec<f64>| list.len() <= most;
        let finer =
            [of(&[1.0, 2.0, 5.0], 1), of(&[1.0, 3.0], 1), of(&[1.0], 1), of(&[1.0], 2), of(&[1.0], 4)];
        finer.into_iter().find(fits).unwrap_or_else(|| of(&[1.0], 8))
    }
}

/// A tick's value without noughts that say nothing.
fn word(value: f64) -> String {
    let text = si(value);
    match text.split_once('e') {
        Some((mantissa, power)) if mantissa.contains('.') => {
            format!("{}e{power}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        None if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(from: f64, to: f64, log: bool, most: usize) -> Vec<String> {
        let scale = Scale { log, from, to, start: 0.0, end: 100.0 };
        scale.ticks(most).into_iter().map(|(_, word)| word).collect()
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(words(0.0, 1.06, false, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(words(0.5, 20.0, true, 6), ["0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(words(0.05, 2e8, true, 6), ["1", "100", "10000", "1000000", "1e8"]);
        assert!(words(1e-15, 1e15, true, 6).len() <= 6);
    }

    #[test]
    fn values_stay_on_the_scale() {
        let scale = Scale { log: true, from: 1.0, to: 100.0, start: 10.0, end: 20.0 };
        assert_eq!((scale.at(10.0), scale.at(0.0), scale.at(f64::MAX)), (15.0, 10.0, 20.0));
        let empty = Scale::fitting(std::iter::empty(), 0.0, 10.0);
        assert!(empty.at(1.0).is_finite() && !empty.ticks(5).is_empty());
    }
}
