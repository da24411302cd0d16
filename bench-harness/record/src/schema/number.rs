//! Numbers in JSON, where neither NaN nor infinity nor (in some tools) integers exist.
//!
//! Written: a number that is not finite becomes null. Read: null becomes `None` (NaN within samples); a literal beyond
//! f64, such as 1e999, is refused; and 512.0 is read where an integer belongs, because pandas turns a column with nulls
//! into floats and JSON Schema calls 512.0 an integer.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An interval, lowest value first: `[lo, hi]` in JSON, null if a bound is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(from = "[f64; 2]")]
#[schemars(with = "[f64; 2]")]
pub struct Interval {
    /// Lower bound.
    pub lo: f64,
    /// Upper bound.
    pub hi: f64,
}

impl From<[f64; 2]> for Interval {
    fn from([lo, hi]: [f64; 2]) -> Self {
        Self { lo, hi }
    }
}

impl Interval {
    /// The interval with both bounds multiplied by `factor`, still lowest first.
    pub fn scaled(self, factor: f64) -> Self {
        let (a, b) = (self.lo * factor, self.hi * factor);
        Self { lo: a.min(b), hi: a.max(b) }
    }

    /// Whether `value` lies inside, bounds included.
    pub fn contains(self, value: f64) -> bool {
        (self.lo..=self.hi).contains(&value)
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.lo.is_finite() && self.hi.is_finite() {
            [self.lo, self.hi].serialize(serializer)
        } else {
            serializer.serialize_none()
        }
    }
}

/// Reads an optional count that may be spelled as an integral float.
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Spelling {
        Integer(u64),
        Float(f64),
    }
    // 2^64 is the first float beyond u64; the cast below is exact underneath it.
    const END: f64 = 18_446_744_073_709_551_616.0;
    match Option::<Spelling>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Spelling::Integer(count)) => Ok(Some(count)),
        Some(Spelling::Float(x)) if x.fract() == 0.0 && (0.0..END).contains(&x) => Ok(Some(x as u64)),
        Some(Spelling::Float(x)) => Err(serde::de::Error::custom(format_args!("{x} is not a count"))),
    }
}

/// Reads samples; null is a sample that was not finite.
pub(crate) fn samples<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<f64>>, D::Error> {
    let samples = Option::<Vec<Option<f64>>>::deserialize(deserializer)?;
    Ok(samples.map(|samples| samples.into_iter().map(|x| x.unwrap_or(f64::NAN)).collect()))
}
