//! Measured choices: seconds per row, configuration and pack format for a bucket of ops, which [`fn@crate::select`] prefers to
//! predictions; and their text form.
//!
//! A bucket is what [`Op::tuning_key`] makes of an op. The text form is a header that says on what was measured, a line per
//! measurement, sorted: key, row, configuration, pack format (`-` for none) and seconds, with tabs between them, and a last line `end`.

use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::op::Op;
use crate::select::Choice;
use std::collections::BTreeMap;
use std::fmt::Write;

/// First line of the text form.
const MAGIC: &str = "perjoule tuning 2";
/// Last line: without it a part is missing.
const END: &str = "end";
/// Stands for what is not known, or not there.
const NONE: &str = "-";

/// How a bucket was run: row, configuration, pack format.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Name of the row.
    pub kernel: String,
    /// Name of its configuration.
    pub config: String,
    /// Name of the pack format of the constant operands.
    pub pack: Option<String>,
}

impl From<&Choice> for Way {
    fn from(choice: &Choice) -> Self {
        Way {
            kernel: choice.kernel.name.into(),
            config: choice.config().name.into(),
            pack: choice.pack.map(|p| p.name.into()),
        }
    }
}

/// What a tuner measured on one device. For a tuner to fill; kept by the device, read by `select`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tuning {
    buckets: BTreeMap<String, BTreeMap<Way, f32>>,
}

impl Tuning {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `choice` took `seconds` on ops of the bucket of `op`.
    pub fn insert(&mut self, op: &Op, choice: &Choice, seconds: f32) {
        self.buckets.entry(op.tuning_key()).or_default().insert(choice.into(), seconds);
    }

    /// Measured seconds of a choice in the bucket of `op`.
    pub fn seconds(&self, op: &Op, choice: &Choice) -> Option<f32> {
        self.buckets.get(&op.tuning_key())?.get(&choice.into()).copied()
    }

    /// Takes over all measurements of `newer`; those of the same way replace its own.
    pub fn merge(&mut self, newer: Tuning) {
        for (key, ways) in newer.buckets {
            self.buckets.entry(key).or_default().extend(ways);
        }
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// All buckets with what was measured in them.
    pub fn buckets(&self) -> impl Iterator<Item = (&str, &BTreeMap<Way, f32>)> {
        self.buckets.iter().map(|(key, ways)| (key.as_str(), ways))
    }

    /// The text form, with a header for the device that was measured.
    pub fn to_text(&self, device: &DeviceInfo) -> String {
        let mut text = format!("{MAGIC}\n");
        // writing into a string cannot fail
        for (field, value) in header(device) {
            let _ = writeln!(text, "{field}\t{value}");
        }
        for (key, ways) in &self.buckets {
            for (Way { kernel, config, pack }, seconds) in ways {
                let pack = pack.as_deref().unwrap_or(NONE);
                let _ = writeln!(text, "{key}\t{kernel}\t{config}\t{pack}\t{seconds:e}");
            }
        }
        let _ = writeln!(text, "{END}");
        text
    }

    /// Reads the text form for `device`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is none or a part is missing, and where it was measured on another device, driver, set of features,
    /// number of threads, or with another version of this crate or build of the rows: the reason names the first that differs.
    pub fn from_text(text: &str, device: &DeviceInfo) -> Result<Self> {
        let bad = |why: String| Error::Malformed { what: "a tuning table", why };
        let mut lines = text.lines().zip(1..);
        if lines.next().map(|(line, _)| line) != Some(MAGIC) {
            return Err(bad(format!("it does not begin with {MAGIC:?}")));
        }
        for (field, here) in header(device) {
            let value = lines.next().and_then(|(line, _)| line.strip_prefix(field)?.strip_prefix('\t'));
            match value {
                Some(value) if value == here => {}
                Some(value) => {
                    return Err(bad(format!("its {field} is {value:?}, here it is {here:?}; measure again")));
                }
                None => return Err(bad(format!("its header has no {field}"))),
            }
        }
        let mut tuning = Tuning::new();
        let mut ended = false;
        for (line, number) in lines {
            if ended {
                return Err(bad(format!("line {number} lies behind its end")));
            }
            if line == END {
                ended = true;
                continue;
            }
            let fields: Vec<&str> = line.split('\t').collect();
            let &[key, kernel, config, pack, seconds] = &fields[..] else {
                return Err(bad(format!("line {number} has {} fields, not 5", fields.len())));
            };
            let seconds: f32 = match seconds.parse() {
                Ok(seconds) if f32::is_finite(seconds) && seconds >= 0.0 => seconds,
                _ => return Err(bad(format!("line {number}: {seconds:?} is no number of seconds"))),
            };
            let pack = (pack != NONE).then(|| pack.to_string());
            let way = Way { kernel: kernel.into(), config: config.into(), pack };
            if tuning.buckets.entry(key.into()).or_default().insert(way, seconds).is_some() {
                return Err(bad(format!("line {number} is there twice")));
            }
        }
        if !ended {
            return Err(bad(format!("its last line is not {END:?}: a part is missing")));
        }
        Ok(tuning)
    }
}

/// What a measurement depends on besides the op.
fn header(device: &DeviceInfo) -> [(&'static str, String); 6] {
    let line = |text: &str| text.replace(char::is_whitespace, " ");
    let mut features = device.features.clone();
    features.sort_unstable();
    [
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("build", device.build.unwrap_or(NONE).into()),
        ("device", line(&format!("{} {}", device.backend, device.name))),
        ("driver", line(device.driver.as_deref().unwrap_or(NONE))),
        ("features", line(&features.join(" "))),
        ("threads", device.threads.map_or(NONE.into(), |n| n.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceClass;
    use crate::dtype::DType;
    use crate::kernel::{Kernel, PackFormat};
    use crate::op::MatMul;
    use std::sync::Arc;

    static PACK: PackFormat = PackFormat {
        name: "eights",
        dtype: DType::F32,
        panel: 8,
        panel_bytes: |k| (k as u64).checked_mul(32),
    };
    static ROW: Kernel = Kernel::new(
        "row",
        "matmul",
        |_| 1.0,
        |_| Err(Error::Unsupported { what: "this row", why: "it is looked at only".into() }),
    );

    fn device(name: &str) -> DeviceInfo {
        let mut info = DeviceInfo::new("toy:0", "toy", name, DeviceClass::Other, Arc::new(()));
        info.features = vec!["b".into(), "a".into()];
        info
    }

    #[test]
    fn a_table_survives_its_text_form() {
        let linear = |m| Op::from(MatMul::linear(m, 64, 32, DType::F32, DType::F32, DType::F32));
        let (plain, packed) = (Choice::new(&ROW, 0, None), Choice::new(&ROW, 0, Some(&PACK)));
        let mut tuning = Tuning::new();
        tuning.insert(&linear(3), &plain, 1.5e-6);
        tuning.insert(&linear(1), &packed, 0.1);
        assert_eq!(tuning.seconds(&linear(4), &plain), Some(1.5e-6));
        assert_eq!(tuning.seconds(&linear(4), &packed), None, "the format is part of it");
        assert_eq!(tuning.seconds(&linear(2), &plain), None);
        let text = tuning.to_text(&device("one"));
        assert_eq!(Tuning::from_text(&text, &device("one")).unwrap(), tuning);
        let body: Vec<&str> = text.lines().skip(7).collect();
        assert!(body.len() == 3 && body[..2].is_sorted() && body[2] == "end", "{text}");
        // wherever it is cut off, it is refused
        for end in 0..text.len() - 1 {
            assert!(Tuning::from_text(&text[..end], &device("one")).is_err(), "{:?}", &text[..end]);
        }
    }

    #[test]
    fn merging_keeps_what_is_not_measured_again() {
        let linear = |m| Op::from(MatMul::linear(m, 64, 32, DType::F32, DType::F32, DType::F32));
        let (plain, packed) = (Choice::new(&ROW, 0, None), Choice::new(&ROW, 0, Some(&PACK)));
        let (mut old, mut new) = (Tuning::new(), Tuning::new());
        assert!(old.is_empty());
        old.insert(&linear(1), &plain, 1.0);
        old.insert(&linear(1), &packed, 2.0);
        new.insert(&linear(1), &packed, 3.0);
        new.insert(&linear(8), &plain, 4.0);
        old.merge(new);
        let seconds = |m, choice| old.seconds(&linear(m), choice);
        assert_eq!(
            (seconds(1, &plain), seconds(1, &packed), seconds(8, &plain)),
            (Some(1.0), Some(3.0), Some(4.0))
        );
    }

    #[test]
    fn a_stale_or_damaged_table_is_refused_with_the_reason() {
        let text = Tuning::new().to_text(&device("one"));
        let why = |text: &str, device: &DeviceInfo| Tuning::from_text(text, device).unwrap_err().to_string();
        let error = why(&text, &device("two"));
        assert!(error.contains("its device is \"toy one\", here it is \"toy two\""), "{error}");
        let mut other = device("one");
        other.driver = Some("570.1".into());
        assert!(why(&text, &other).contains("driver"));
        other = device("one");
        other.threads = Some(3);
        assert!(why(&text, &other).contains("threads"));
        other = device("one");
        other.features.pop();
        assert!(why(&text, &other).contains("features"));
        other = device("one");
        other.build = Some("0123");
        assert!(why(&text, &other).contains("build"));
        let older = text.replace(env!("CARGO_PKG_VERSION"), "0.0.0");
        assert!(why(&older, &device("one")).contains("version"));
        let text = text.strip_suffix("end\n").unwrap();
        for (damaged, says) in [
            ("".to_string(), "begin with"),
            (text.replace("driver", "rider"), "no driver"),
            (format!("{text}key\trow\tdefault\t-\n"), "line 8 has 4 fields"),
            (format!("{text}key\trow\tdefault\t-\tNaN\n"), "no number of seconds"),
            (format!("{text}key\trow\tdefault\t-\t1\n"), "part is missing"),
            (format!("{text}end\nend\n"), "behind its end"),
            (format!("{text}key\trow\tdefault\t-\t1\nkey\trow\tdefault\t-\t2\n"), "line 9 is there twice"),
        ] {
            let error = why(&damaged, &device("one"));
            assert!(error.contains(says), "{error}");
        }
    }
}
