//! Classes of hardware: the built-in catalogue, the user's own entries, and lookup by name.

use crate::known::{Figure, Known, Trust};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::OnceLock;

const HARDWARE: &str = include_str!("../data/hardware.toml");

/// Dense peak rates of one unit in TFLOP/s (TOP/s for int8), without 2:4 sparsity.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peaks {
    /// Single precision.
    pub f32: Figure,
    /// TF32 tensor format.
    pub tf32: Figure,
    /// bf16, and f16 at the same rate.
    pub bf16: Figure,
    /// 8-bit float.
    pub fp8: Figure,
    /// 8-bit integer.
    pub int8: Figure,
    /// 4-bit float.
    pub fp4: Figure,
}

/// One class of hardware, per device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Short name, unique in a catalogue: lower case, digits and hyphens.
    pub id: String,
    /// The product's name.
    pub name: String,
    /// Classes of one family lend each other their calibration.
    #[serde(default)]
    pub family: String,
    /// What one device is: GPU, chip, socket.
    #[serde(default)]
    pub unit: String,
    /// Dense peak rates.
    #[serde(default)]
    pub peak: Peaks,
    /// Memory in 10^9 bytes.
    #[serde(default)]
    pub mem_gb: Figure,
    /// How the source prints the capacity.
    #[serde(default)]
    pub mem_unit: String,
    /// Memory bandwidth in 10^9 bytes/s.
    #[serde(default)]
    pub mem_gbs: Figure,
    /// Power limit of the board or module as sold, in watts.
    #[serde(default)]
    pub tdp_w: Figure,
    /// Scale-up bandwidth, both directions together, in 10^9 bytes/s.
    #[serde(default)]
    pub link_gbs: Figure,
    /// What the link is.
    #[serde(default)]
    pub link_note: String,
    /// Process node.
    #[serde(default)]
    pub node: String,
    /// Where it can be hired.
    #[serde(default)]
    pub instance: String,
    /// On-demand price in USD per device and hour, unless `price_note` says otherwise.
    #[serde(default)]
    pub usd_h_device: Figure,
    /// What the price is.
    #[serde(default)]
    pub price_note: String,
    /// Provisioned facility power per device, everything included, in kW.
    #[serde(default)]
    pub allin_kw: Figure,
    /// Keys of the file's table of sources.
    #[serde(default)]
    pub src: Vec<String>,
    /// Trust in the figures that have none of their own.
    #[serde(default = "secondary")]
    pub trust: Trust,
    /// What else must be known.
    #[serde(default)]
    pub note: String,
    /// File that the entry comes from.
    #[serde(skip)]
    pub origin: String,
}

fn secondary() -> Trust {
    Trust::C
}

impl Class {
    /// A class of which nothing is known yet, to be filled, such as a machine that was measured.
    pub fn unknown(id: &str, name: &str) -> Class {
        Class {
            id: id.into(),
            name: name.into(),
            family: String::new(),
            unit: String::new(),
            peak: Peaks::default(),
            mem_gb: Figure::default(),
            mem_unit: String::new(),
            mem_gbs: Figure::default(),
            tdp_w: Figure::default(),
            link_gbs: Figure::default(),
            link_note: String::new(),
            node: String::new(),
            instance: String::new(),
            usd_h_device: Figure::default(),
            price_note: String::new(),
            allin_kw: Figure::default(),
            src: Vec::new(),
            trust: secondary(),
            note: String::new(),
            origin: String::new(),
        }
    }

    /// The figures of the class with their names in the file.
    pub fn figures(&self) -> [(&'static str, &Figure); 12] {
        [
            ("peak.f32", &self.peak.f32),
            ("peak.tf32", &self.peak.tf32),
            ("peak.bf16", &self.peak.bf16),
            ("peak.fp8", &self.peak.fp8),
            ("peak.int8", &self.peak.int8),
            ("peak.fp4", &self.peak.fp4),
            ("mem_gb", &self.mem_gb),
            ("mem_gbs", &self.mem_gbs),
            ("tdp_w", &self.tdp_w),
            ("link_gbs", &self.link_gbs),
            ("usd_h_device", &self.usd_h_device),
            ("allin_kw", &self.allin_kw),
        ]
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: Option<String>,
    #[serde(rename = "collected")]
    _collected: Option<String>,
    #[serde(default)]
    sources: BTreeMap<String, String>,
    hardware: Vec<Class>,
}

const SCHEMA: &str = "perjoule.hardware/1";

/// What is wrong with a file of classes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}:{line}: {}{message}", field.as_deref().map(|f| format!("`{f}`: ")).unwrap_or_default())]
pub struct CatalogueError {
    /// The file.
    pub origin: String,
    /// The line, from 1.
    pub line: usize,
    /// The field, where one is to blame.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// What a lookup found instead of one class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nothing has these fragments in its id or name.
    #[error("no class of hardware is called `{query}`; nearest: {}", suggestions.join(", "))]
    NotFound {
        /// What was looked for.
        query: String,
        /// The ids that come nearest.
        suggestions: Vec<String>,
    },
    /// Several classes have them.
    #[error("`{query}` is one of {}: say which", candidates.join(", "))]
    Ambiguous {
        /// What was looked for.
        query: String,
        /// Their ids.
        candidates: Vec<String>,
    },
}

/// What [`Catalogue::extend_from_toml`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extended {
    /// Ids that are new.
    pub added: Vec<String>,
    /// Ids that replaced an entry, with the origin of that entry.
    pub replaced: Vec<(String, String)>,
}

/// Classes of hardware and the sources they name.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    classes: Vec<Class>,
    sources: BTreeMap<String, String>,
}

impl Catalogue {
    /// The catalogue that comes with the crate.
    pub fn builtin() -> Catalogue {
        static BUILTIN: OnceLock<Catalogue> = OnceLock::new();
        BUILTIN
            .get_or_init(|| {
                let mut catalogue = Catalogue { classes: Vec::new(), sources: BTreeMap::new() };
                // a test parses the embedded file, so this cannot fail in a crate that passed its tests
                if let Err(error) = catalogue.extend_from_toml(HARDWARE, "built in") {
                    unreachable!("{error}");
                }
                catalogue
            })
            .clone()
    }

    /// Adds the classes of a TOML text in the format of `data/hardware.toml`. An id that exists is replaced, and the result says so.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its line and field; the catalogue is then unchanged.
    pub fn extend_from_toml(&mut self, text: &str, origin: &str) -> Result<Extended, CatalogueError> {
        let fail = |line: usize, field: Option<&str>, message: String| CatalogueError {
            origin: origin.to_string(),
            line,
            field: field.map(str::to_string),
            message,
        };
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            // the message names an unknown field itself
            let field = if error.message().starts_with("unknown field") { None } else { key_at(text, at) };
            let message = error.message().replace('\n', " ");
            fail(line_at(text, at), field.as_deref(), message)
        })?;
        let line_of =
            |needle: &str| text.lines().position(|line| line.contains(needle)).map_or(1, |line| line + 1);
        if file.schema.as_deref().is_some_and(|schema| schema != SCHEMA) {
            return Err(fail(line_of("schema"), Some("schema"), format!("this version reads `{SCHEMA}`")));
        }
        let known = |source: &String| self.sources.contains_key(source) || file.sources.contains_key(source);
        let mut seen = Vec::new();
        for class in &file.hardware {
            let line = line_of(&format!("\"{}\"", class.id));
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            if class.id.is_empty() || !class.id.chars().all(plain) {
                let message = format!("`{}` is not lower case letters, digits, dots and hyphens", class.id);
                return Err(fail(line, Some("id"), message));
            }
            if seen.contains(&&class.id) {
                return Err(fail(line, Some("id"), format!("`{}` is there twice", class.id)));
            }
            seen.push(&class.id);
            let own = class.figures().into_iter().flat_map(|(_, figure)| &figure.src);
            if let Some(source) = class.src.iter().chain(own).find(|source| !known(source)) {
                let line = line_of(&format!("\"{source}\""));
                return Err(fail(line, Some("src"), format!("`{source}` is not in [sources]")));
            }
        }
        let mut extended = Extended::default();
        for mut class in file.hardware {
            class.origin = origin.to_string();
            match self.classes.iter_mut().find(|c| c.id == class.id) {
                Some(place) => {
                    extended.replaced.push((class.id.clone(), place.origin.clone()));
                    *place = class;
                }
                None => {
                    extended.added.push(class.id.clone());
                    self.classes.push(class);
                }
            }
        }
        self.sources.extend(file.sources);
        Ok(extended)
    }

    /// All classes, in the order of the files.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The text of a source that a class or figure names.
    pub fn source(&self, key: &str) -> Option<&str> {
        self.sources.get(key).map(String::as_str)
    }

    /// The class with exactly this id.
    pub fn get(&self, id: &str) -> Option<&Class> {
        self.classes.iter().find(|class| class.id == id)
    }

    /// The class with this id (its vendor may be left out) or name, or the only one whose id or name contains every fragment of the query.
    ///
    /// # Errors
    ///
    /// The candidates where there are several, the nearest ids where there is none.
    ///
    /// ```
    /// use perjoule_catalogue::Catalogue;
    /// let catalogue = Catalogue::builtin();
    /// assert_eq!(catalogue.find("mi300x")?.id, "amd-mi300x");
    /// assert!(catalogue.find("h100").unwrap_err().to_string().contains("nvidia-h100-pcie"));
    /// # Ok::<(), perjoule_catalogue::LookupError>(())
    /// ```
    pub fn find(&self, query: &str) -> Result<&Class, LookupError> {
        let wanted = query.trim().to_lowercase();
        // the id, the id without its vendor, or the name
        let whole = |class: &&Class| {
            let bare = class.id.split_once('-').map(|(_, bare)| bare);
            class.id == wanted || bare == Some(wanted.as_str()) || class.name.to_lowercase() == wanted
        };
        if let [class] = self.classes.iter().filter(whole).collect::<Vec<_>>()[..] {
            return Ok(class);
        }
        let fragments: Vec<&str> = wanted.split([' ', '-', '_', '/']).filter(|f| !f.is_empty()).collect();
        let hits: Vec<&Class> = self
            .classes
            .iter()
            .filter(|class| !fragments.is_empty() && fragments.iter().all(|f| haystack(class).contains(f)))
            .collect();
        // a fragment that is a whole word beats one inside a longer word: l4 is not l40s
        let words: Vec<&&Class> = hits
            .iter()
            .filter(|class| {
                fragments.iter().all(|f| haystack(class).split([' ', '-', '(', ')', ',']).any(|w| w == *f))
            })
            .collect();
        match (hits.as_slice(), words.as_slice()) {
            ([class], _) => Ok(class),
            (_, [class]) => Ok(class),
            ([], _) => {
                Err(LookupError::NotFound { query: query.to_string(), suggestions: self.nearest(&wanted) })
            }
            (several, _) => Err(LookupError::Ambiguous {
                query: query.to_string(),
                candidates: several.iter().map(|class| class.id.clone()).collect(),
            }),
        }
    }

    fn nearest(&self, wanted: &str) -> Vec<String> {
        let score = |class: &Class| {
            let words = class.id.split('-').chain([class.id.as_str()]);
            words.map(|word| distance(word, wanted)).min().unwrap_or(usize::MAX)
        };
        let mut ranked: Vec<(usize, &str)> = self.classes.iter().map(|c| (score(c), c.id.as_str())).collect();
        ranked.sort();
        ranked.into_iter().take(5).map(|(_, id)| id.to_string()).collect()
    }
}

fn haystack(class: &Class) -> String {
    format!("{} {}", class.id, class.name.to_lowercase())
}

fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The key whose value starts at an offset: the last `key =` before it on its line.
fn key_at(text: &str, at: usize) -> Option<String> {
    let start = text.as_bytes()[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |i| i + 1);
    let before = text.get(start..at)?;
    let key = before.rsplit_once('=')?.0;
    let key = key.rsplit(['{', ',']).next()?.trim();
    (!key.is_empty()).then(|| key.to_string())
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// A rate with the name of the figure it comes from.
pub(crate) fn named(figure: &Figure, name: &'static str) -> Option<(f64, &'static str)> {
    figure.known.upper().map(|value| (value, name))
}

/// Whether a figure is in conflict.
pub(crate) fn conflicting(figure: &Figure) -> bool {
    matches!(figure.known, Known::Conflict { .. })
}
