//! What the doctor says, and the tree of files that it reads.

use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// To be known; nothing is wrong.
    Note,
    /// Makes numbers noisy, or worse than they could be.
    Warn,
    /// Is there, or could be, and cannot be used.
    Missing,
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Warn => "warn",
            Status::Missing => "missing",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) section: &'static str,
    pub(super) name: String,
    pub(super) status: Status,
    /// One sentence.
    pub(super) detail: String,
    /// Commands to be pasted, a line each; `None` where nothing is to be done.
    pub(super) fix: Option<String>,
}

/// The findings of a section.
#[derive(Debug)]
pub(super) struct Section {
    name: &'static str,
    pub(super) list: Vec<Finding>,
}

impl Section {
    pub(super) fn new(name: &'static str) -> Self {
        Section { name, list: Vec::new() }
    }

    fn add(&mut self, status: Status, name: &str, detail: impl Into<String>, fix: Option<String>) {
        let (section, name) = (self.name, name.to_owned());
        self.list.push(Finding { section, name, status, detail: detail.into(), fix });
    }

    pub(super) fn ok(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::Ok, name, detail, None);
    }

    pub(super) fn note(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::Note, name, detail, None);
    }

    pub(super) fn warn(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::Warn, name, detail, None);
    }

    pub(super) fn missing(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::Missing, name, detail, None);
    }

    /// Gives the last finding its commands.
    pub(super) fn fix(&mut self, commands: impl Into<String>) {
        if let Some(last) = self.list.last_mut() {
            last.fix = Some(commands.into());
        }
    }
}

/// The files of a machine: those of this one, or a copy of some of them.
#[derive(Debug, Clone)]
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Root(path.into())
    }

    /// Whether it is this machine, whose devices can be asked beside its files.
    pub(super) fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    #[cfg(test)]
    pub(super) fn whole(&self) -> &Path {
        &self.0
    }

    /// `path` begins without a slash.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The file's text without the space around it; `None` when it cannot be read or is empty.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        // files of these trees may hold any bytes
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty())
    }

    pub(super) fn number(&self, path: &str) -> Option<f64> {
        self.text(path)?.parse().ok().filter(|x: &f64| x.is_finite())
    }

    /// Names in a folder, in order; none when it is not there.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A tree of files.
    pub(crate) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(crate) fn new(files: &[(&str, &str)]) -> Self {
            let tree = Tree(tempfile::tempdir().unwrap());
            files.iter().for_each(|(path, text)| tree.put(path, text));
            tree
        }

        pub(crate) fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(crate) fn root(&self) -> Root {
            Root::new(self.0.path())
        }
    }

    /// The finding of that name.
    pub(crate) fn named<'f>(list: &'f [Finding], name: &str) -> &'f Finding {
        list.iter().find(|finding| finding.name == name).unwrap_or_else(|| panic!("no {name} in {list:#?}"))
    }

    #[test]
    fn files_of_any_bytes_are_read() {
        let tree = Tree::new(&[("a/b10", " 7 \n"), ("a/b9", ""), ("a/c", "nan")]);
        fs::write(tree.root().path("a/d"), [0xff, b'x']).unwrap();
        let root = tree.root();
        assert_eq!((root.number("a/b10"), root.number("a/c"), root.text("a/b9")), (Some(7.0), None, None));
        assert_eq!(root.text("a/d").unwrap(), "\u{fffd}x");
        assert_eq!(root.names("a"), ["c", "d", "b9", "b10"]);
        assert!(root.names("no").is_empty() && !root.is_real() && Root::new("/").is_real());
    }
}
