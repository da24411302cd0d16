//! Known failures, with reasons: `expectations.toml`. A test that is listed and passes fails, so that the list cannot go stale.

use serde::Deserialize;

/// One known failure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Name of a test, or a beginning of names followed by `*`.
    pub test: String,
    /// Why it fails, and what would end that.
    pub reason: String,
}

/// All of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// In no particular order.
    #[serde(default)]
    pub failure: Vec<Expectation>,
}

impl Expectations {
    /// Reads the text of `expectations.toml`.
    ///
    /// # Errors
    /// When it is malformed, or an entry gives no reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list: Expectations = toml::from_str(text).map_err(|e| e.to_string())?;
        match list.failure.iter().find(|e| e.reason.trim().is_empty()) {
            Some(entry) => Err(format!("{} has no reason", entry.test)),
            None => Ok(list),
        }
    }

    /// Why the test of that name is known to fail.
    pub fn reason(&self, test: &str) -> Option<&str> {
        let found = self.failure.iter().find(|entry| match entry.test.strip_suffix('*') {
            Some(beginning) => test.starts_with(beginning),
            None => test == entry.test,
        });
        found.map(|entry| entry.reason.as_str())
    }

    /// What a test's result means, given what is expected of it.
    ///
    /// # Errors
    /// When it failed and should not have, or passed and should not have.
    pub fn settle(&self, test: &str, result: Result<(), String>) -> Result<(), String> {
        match (result, self.reason(test)) {
            (Err(_), Some(_)) => Ok(()),
            (Ok(()), Some(reason)) => {
                Err(format!("passed, but expectations.toml says it fails ({reason}): remove the entry"))
            }
            (result, None) => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unexpected_passes_and_failures_are_failures() {
        let text = "[[failure]]\ntest = \"cpu::row::*\"\nreason = \"known\"\n";
        let list = Expectations::parse(text).unwrap();
        assert!(list.settle("cpu::row::a::b", Err("wrong".into())).is_ok());
        assert!(list.settle("cpu::row::a::b", Ok(())).is_err());
        assert!(list.settle("cpu::other::a::b", Err("wrong".into())).is_err());
        assert!(list.settle("cpu::other::a::b", Ok(())).is_ok());
    }

    #[test]
    fn entries_need_reasons() {
        assert!(Expectations::parse("[[failure]]\ntest = \"a\"\nreason = \" \"\n").is_err());
        assert!(Expectations::parse("[[failure]]\ntest = \"a\"\n").is_err());
        assert!(Expectations::parse("").unwrap().failure.is_empty());
    }
}
