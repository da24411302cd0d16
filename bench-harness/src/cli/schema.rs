//! `perjoule schema`: what a line of a file of records holds.

use anyhow::Result;
use std::io::{self, Write};

use super::Ended;

pub(super) fn run() -> Result<Ended> {
    let schema = serde_json::to_string_pretty(&perjoule_record::json_schema())?;
    writeln!(io::stdout(), "{schema}")?;
    Ok(Ended::Done)
}
