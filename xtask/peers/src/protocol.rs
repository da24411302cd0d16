//! How workers are spoken to, and the numbers that they all draw.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Something that is ready to be called.
pub(crate) trait Ready {
    fn call(&mut self) -> Result<()>;
    /// Waits for the calls where they only began.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
    fn sample(&mut self) -> Result<Vec<f32>>;
}

/// Makes a case ready.
pub(crate) type Setup<'a> = dyn FnMut(&Value) -> Result<Box<dyn Ready + 'a>> + 'a;

/// Answers commands until stdin ends.
pub(crate) fn serve<'a>(setup: &mut Setup<'a>) -> Result<()> {
    let mut ready: Option<Box<dyn Ready + 'a>> = None;
    for line in std::io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let answer = match command["do"].as_str() {
            Some("setup") => {
                drop(ready.take()); // its memory goes before the next one's is taken
                let made = setup(&command);
                match made.and_then(|mut made| Ok((made.call()?, made.sample()?, made))) {
                    Ok(((), sample, made)) => {
                        ready = Some(made);
                        json!({ "ok": true, "sample": sample })
                    }
                    Err(error) => json!({ "refused": format!("{error:#}") }),
                }
            }
            Some("time") => {
                let (calls, ready) =
                    (command["calls"].as_u64().unwrap_or(1), ready.as_mut().context("no setup")?);
                let start = Instant::now();
                (0..calls).try_for_each(|_| ready.call())?;
                ready.finish()?;
                json!({ "seconds": start.elapsed().as_secs_f64() / calls as f64 })
            }
            _ => bail!("unknown command {command}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Numbers from -0.5 to 0.5 that every worker draws alike: splitmix64 of the index (Steele, Lea and Flood, 2014).
pub(crate) fn random(seed: u64, count: usize) -> Vec<f32> {
    let draw = |index: u64| {
        let mut x = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed << 40);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count as u64).map(draw).collect()
}

/// A number of the case.
pub(crate) fn size(case: &Value, name: &str) -> Result<usize> {
    case[name].as_u64().map(|n| n as usize).with_context(|| format!("the case has no {name}"))
}

/// The first and the last eight of `values`.
pub(crate) fn ends<T: Copy>(values: &[T]) -> Vec<T> {
    let count = values.len().min(8);
    values[..count].iter().chain(&values[values.len() - count..]).copied().collect()
}
