//! Sources of GPU kernels as data: WGSL under `wgsl/<op>/`, CUDA C++ under `cuda/<op>/`, each included as text with a hash of its
//! content, by which compiled forms are cached.
//!
//! The CPU backend needs none. Files are named after the algorithm.

#![forbid(unsafe_code)]

pub mod cuda;
pub mod wgsl;

/// One source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Path below `shaders/`, such as `wgsl/matmul/tiled.wgsl`: unique.
    pub path: &'static str,
    /// The text.
    pub text: &'static str,
    /// [`hash`] of the text.
    pub hash: u64,
}

impl Source {
    /// A source with its hash, computed at compile time.
    pub const fn new(path: &'static str, text: &'static str) -> Self {
        Source { path, text, hash: hash(text) }
    }
}

/// Each file once: a static of its name, and the list of all.
macro_rules! sources {
    ($(#[$list_doc:meta])* $list:ident: $($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$doc])* pub static $name: Source = Source::new($path, include_str!(concat!("../", $path)));)*

        $(#[$list_doc])*
        pub static $list: &[&Source] = &[$(&$name),*];
    };
}
pub(crate) use sources;

/// FNV-1a over the bytes, 64 bits (draft-eastlake-fnv): tells versions of a file apart; not a defence against forgery.
pub const fn hash(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // test vectors of the FNV draft
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn paths_are_unique() {
        let lists = [cuda::SOURCES, cuda::HEADERS, wgsl::SOURCES, wgsl::HEADERS];
        let mut paths: Vec<_> = lists.into_iter().flatten().map(|s| s.path).collect();
        let count = paths.len();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), count);
    }
}
