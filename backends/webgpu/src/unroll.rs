//! Marked loops are written out before a driver sees them.
//!
//! An array of sums is in registers where all its indices are known, and drivers differ in what they make of a loop over it: some leave
//! it as it is, and the sums are then in memory. So a loop of the form
//!
//! ```wgsl
//! // unroll
//! for (var i = 0u; i < ROWS; i++) {
//! ```
//!
//! is replaced by its body for each of its turns. The bound is an expression of the module's constants, nothing leaves the loop early,
//! and nothing within it has the name of its variable. Not all loops are marked: drivers that unroll by themselves, as lavapipe's
//! compiler does, take several times as long for what is written out.

use std::collections::HashMap;
use std::fmt::Write as _;

/// The module without its marked loops.
pub(crate) fn unrolled(text: &str) -> String {
    expanded(text, &constants(text))
}

fn expanded(text: &str, constants: &HashMap<&str, &str>) -> String {
    const MARK: &str = "// unroll\n";
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let here = &rest[at + MARK.len()..];
        rest = match loop_of(here, constants) {
            Some((turns, after)) => {
                out.push_str(&turns);
                after
            }
            None => {
                out.push_str(MARK);
                here
            }
        };
    }
    out.push_str(rest);
    out
}

/// The turns of the loop that the text begins with, and what follows it.
fn loop_of<'a>(text: &'a str, constants: &HashMap<&str, &str>) -> Option<(String, &'a str)> {
    let (name, head) = text.trim_start().strip_prefix("for (var ")?.split_once(" = 0u; ")?;
    let head = head.strip_prefix(name)?.strip_prefix(" < ")?;
    let (bound, head) = head.split_once("; ")?;
    let inside = head.strip_prefix(name)?.strip_prefix("++) {")?;
    let count = Expression { rest: bound, constants, depth: 0 }.whole()?;
    let end = end_of_block(inside)?;
    let body = &inside[..end];
    let shadows = ["var ", "let "].iter().any(|word| body.contains(&format!("{word}{name} ")));
    if shadows || ["break", "continue", "return"].iter().any(|word| body.contains(word)) {
        return None;
    }
    let mut turns = String::new();
    for turn in 0..count {
        let _ = writeln!(turns, "{{{}}}", expanded(&with(body, name, turn), constants));
    }
    Some((turns, &inside[end + 1..]))
}

/// Where the block ends whose `{` is before the text.
fn end_of_block(text: &str) -> Option<usize> {
    let (mut depth, mut comment) = (1, false);
    let bytes = text.as_bytes();
    for (i, &byte) in bytes.iter().enumerate() {
        comment = match byte {
            b'\n' => false,
            b'/' => comment || bytes.get(i + 1) == Some(&b'/'),
            _ => comment,
        };
        match byte {
            b'{' if !comment => depth += 1,
            b'}' if !comment => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The text with a number in place of a variable.
fn with(text: &str, name: &str, value: u32) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let end = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |len| start + len);
        let (before, word) = (&rest[..start], &rest[start..end]);
        out.push_str(before);
        // a member of the same name is not the variable
        if word == name && !before.ends_with('.') {
            let _ = write!(out, "{value}u");
        } else {
            out.push_str(word);
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The constants of the module by their names, as they are written.
fn constants(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("const ")?.split_once('=')?;
            let name = name.split(':').next()?.trim();
            Some((name, value.split(';').next()?.trim()))
        })
        .collect()
}

/// An expression of numbers and constants: sums of products.
struct Expression<'a> {
    rest: &'a str,
    constants: &'a HashMap<&'a str, &'a str>,
    /// Constants within constants.
    depth: u32,
}

impl Expression<'_> {
    fn whole(mut self) -> Option<u32> {
        let value = self.sum()?;
        self.rest.trim().is_empty().then_some(value)
    }

    fn takes(&mut self, symbol: char) -> bool {
        let rest = self.rest.trim_start().strip_prefix(symbol);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Option<u32> {
        let mut value = self.product()?;
        loop {
            if self.takes('+') {
                value = value.checked_add(self.product()?)?;
            } else if self.takes('-') {
                value = value.checked_sub(self.product()?)?;
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<u32> {
        let mut value = self.factor()?;
        loop {
            if self.takes('*') {
                value = value.checked_mul(self.factor()?)?;
            } else if self.takes('/') {
                value = value.checked_div(self.factor()?)?;
            } else if self.takes('%') {
                value = value.checked_rem(self.factor()?)?;
            } else {
                return Some(value);
            }
        }
    }

    fn factor(&mut self) -> Option<u32> {
        if self.takes('(') {
            let value = self.sum()?;
            return self.takes(')').then_some(value);
        }
        let rest = self.rest.trim_start();
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        self.rest = &rest[end..];
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.trim_end_matches('u').parse().ok();
        }
        let text = *self.constants.get(word)?;
        let depth = self.depth + 1;
        (depth < 32).then_some(())?;
        Expression { rest: text, constants: self.constants, depth }.whole()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_written_out_within_each_other() {
        let constants = "const A = 2u;\nconst B: u32 = (A * 3u + 2u - 1u) / 7u + A % 2u;\n";
        let text = "// unroll\n  for (var i = 0u; i < A; i++) {\nlet x = s.i + i; // a } in a comment\n// unroll\nfor (var j = 0u; j < B + i; j++) { f(i, j, ij); }\n}\nend";
        let turn =
            |i: u32, inner: &str| format!("{{\nlet x = s.i + {i}u; // a }} in a comment\n{inner}\n}}\n");
        let expected =
            turn(0, "{ f(0u, 0u, ij); }\n") + &turn(1, "{ f(1u, 0u, ij); }\n{ f(1u, 1u, ij); }\n") + "\nend";
        assert_eq!(unrolled(&(constants.to_owned() + text)), constants.to_owned() + &expected);
    }

    #[test]
    fn other_loops_stay() {
        for text in [
            "for (var i = 1u; i < 4u; i++) { f(i); }",
            "for (var i = 0u; i < params.n; i++) { f(i); }",
            "for (var i = 0u; i < 4u; i += 2u) { f(i); }",
            "for (var i = 0u; i < 4u; i++) { if f(i) { break; } }",
            "for (var i = 0u; i < 4u; i++) { for (var i = 1u; i < 4u; i++) { f(i); } }",
            "for (var i = 0u; i < A; i++) {}",
        ] {
            for text in
                [format!("const A = A;\n// unroll\n{text}"), "for (var i = 0u; i < 4u; i++) {}".to_owned()]
            {
                assert_eq!(unrolled(&text), text);
            }
        }
    }
}
