//! One result as names and values, whatever file it lay in.

use serde_json::{Map, Value};

use super::shown;

/// One result of a file.
pub(super) struct Row {
    /// Number of its line, from 1.
    pub(super) line: u64,
    /// Its fields. Formats without types hold strings only.
    pub(super) cells: Map<String, Value>,
    /// Whether numbers are written as strings.
    pub(super) textual: bool,
}

/// A field: known, unknown, or something that it cannot be (the message says what).
pub(super) type Field<T> = Result<Option<T>, String>;

impl Row {
    /// The value, where there is one: null and, in untyped files, the empty string are unknown.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.cells.get(key).filter(|value| match value {
            Value::Null => false,
            Value::String(text) => !(self.textual && text.trim().is_empty()),
            _ => true,
        })
    }

    pub(super) fn text(&self, key: &str) -> Field<&str> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some(other) => Err(wrong(key, other, "text")),
        }
    }

    /// A number of things: a natural number, also when spelled as an integral float.
    pub(super) fn count(&self, key: &str) -> Field<u64> {
        // The largest float under which every natural number is exact.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let integral = |x: f64| (x.fract() == 0.0 && (0.0..=EXACT).contains(&x)).then_some(x as u64);
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = match value {
            Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(integral)),
            Value::String(text) if self.textual => {
                let text = text.trim();
                text.parse().ok().or_else(|| text.parse().ok().and_then(integral))
            }
            _ => None,
        };
        count.map(Some).ok_or_else(|| wrong(key, value, "a count"))
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Field<f64> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) if self.textual => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|x| x.is_finite()).map(Some).ok_or_else(|| wrong(key, value, "a number"))
    }

    /// A time, rate or energy: none of them is zero or less.
    pub(super) fn positive(&self, key: &str) -> Field<f64> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(format!("`{key}` is {x}: impossible")),
            number => Ok(number),
        }
    }

    /// The value as the file writes it, for settings that are kept as text.
    pub(super) fn spelled(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Array(_) | Value::Object(_) => None,
            other => Some(other.to_string()),
        }
    }

    /// The settings among `keys` that the row has, as `key=value,key=value`.
    pub(super) fn settings(&self, keys: &[&str]) -> Option<String> {
        let known = keys.iter().filter_map(|key| Some(format!("{key}={}", self.spelled(key)?)));
        Some(known.collect::<Vec<_>>().join(",")).filter(|settings| !settings.is_empty())
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> String {
    format!("`{key}` is {}, not {expected}", shown(&value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(textual: bool, value: Value) -> Row {
        Row { line: 1, cells: Map::from_iter([("x".into(), value)]), textual }
    }

    #[test]
    fn counts_and_numbers() {
        for (text, count, number) in [
            ("512", Some(512), Some(512.0)),
            ("512.0", Some(512), Some(512.0)),
            (" 7 ", Some(7), Some(7.0)),
            ("18446744073709551615", Some(u64::MAX), Some(u64::MAX as f64)),
            ("18446744073709551616", None, Some(18_446_744_073_709_551_616.0)),
            ("1e308", None, Some(1e308)),
            ("0.5", None, Some(0.5)),
            ("-1", None, Some(-1.0)),
            ("1e999", None, None),
            ("nan", None, None),
            ("inf", None, None),
            ("true", None, None),
            ("1,5", None, None),
        ] {
            let textual = row(true, text.into());
            assert_eq!(textual.count("x").ok(), count.map(Some), "{text}");
            assert_eq!(textual.number("x").ok(), number.map(Some), "{text}");
            assert!(row(false, text.into()).number("x").is_err(), "a string is no number in JSON");
        }
        for unknown in [row(true, "".into()), row(false, Value::Null)] {
            assert_eq!(
                (unknown.count("x"), unknown.positive("x"), unknown.text("x")),
                (Ok(None), Ok(None), Ok(None))
            );
        }
        assert!(row(false, 0.into()).positive("x").is_err() && row(true, "-2".into()).positive("x").is_err());
        assert!(row(false, 3.into()).text("x").is_err());
        assert!(row(false, serde_json::json!([1])).count("x").is_err());
    }
}
