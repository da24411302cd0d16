//! Values that may be unknown, and figures: such values with their sources.

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use std::fmt;

/// A value, or why there is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Known<T> {
    /// What the sources agree on.
    Value(T),
    /// Read in no source; never filled by guess.
    Unknown,
    /// A source shows that the part has no such thing.
    Unsupported,
    /// Sources disagree.
    Conflict {
        /// What they say, in the order of the sources.
        values: Vec<T>,
    },
}

impl<T> Known<T> {
    /// The value that sources agree on.
    pub fn value(&self) -> Option<&T> {
        match self {
            Known::Value(value) => Some(value),
            _ => None,
        }
    }
}

impl Known<f64> {
    /// The largest value that any source gives: what a roof may use, since a roof that is too low would be broken.
    pub fn upper(&self) -> Option<f64> {
        match self {
            Known::Value(value) => Some(*value),
            Known::Conflict { values } => values.iter().copied().reduce(f64::max),
            Known::Unknown | Known::Unsupported => None,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Known<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Known::Value(value) => value.fmt(f),
            Known::Unknown => f.write_str("unknown"),
            Known::Unsupported => f.write_str("unsupported"),
            Known::Conflict { values } => {
                f.write_str("conflict: ")?;
                for (i, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if i == 0 { "" } else { " or " })?;
                }
                Ok(())
            }
        }
    }
}

/// How far a source is from the vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Trust {
    /// Vendor text read directly.
    A,
    /// A copy of the vendor's table, or a maintained project.
    B,
    /// Secondary, or derived.
    C,
}

/// A number of the catalogue with what it rests on. Sources and trust are empty where those of the whole class hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The number.
    pub known: Known<f64>,
    /// Keys of the file's table of sources.
    pub src: Vec<String>,
    /// The trust in them.
    pub trust: Option<Trust>,
    /// What else must be known about the number.
    pub note: Option<String>,
}

impl Default for Figure {
    fn default() -> Self {
        Figure::from(Known::Unknown)
    }
}

impl From<Known<f64>> for Figure {
    fn from(known: Known<f64>) -> Self {
        Figure { known, src: Vec::new(), trust: None, note: None }
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FigureVisitor)
    }
}

struct FigureVisitor;

fn positive<E: de::Error>(value: f64) -> Result<f64, E> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(E::custom(format!("{value} is not a positive number; what is not known is \"unknown\"")))
    }
}

impl<'de> Visitor<'de> for FigureVisitor {
    type Value = Figure;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a positive number, \"unknown\", \"unsupported\", { conflict = [..] } or { value = .. }")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Figure, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Figure, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Figure, E> {
        Ok(Known::Value(positive(value)?).into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Figure, E> {
        match value {
            "unknown" => Ok(Known::Unknown.into()),
            "unsupported" => Ok(Known::Unsupported.into()),
            _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Figure, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            value: Option<f64>,
            conflict: Option<Vec<f64>>,
            #[serde(default)]
            src: Vec<String>,
            trust: Option<Trust>,
            note: Option<String>,
        }
        let raw = Raw::deserialize(de::value::MapAccessDeserializer::new(map))?;
        let known = match (raw.value, raw.conflict) {
            (Some(value), None) => Known::Value(positive(value)?),
            (None, Some(values)) if values.len() >= 2 => {
                Known::Conflict { values: values.into_iter().map(positive).collect::<Result<_, _>>()? }
            }
            (None, Some(_)) => return Err(de::Error::custom("a conflict has two values or more")),
            _ => return Err(de::Error::custom("a figure has either `value` or `conflict`")),
        };
        Ok(Figure { known, src: raw.src, trust: raw.trust, note: raw.note })
    }
}
