//! Names made harmless for the format that they are written in.

/// One line: control characters, line breaks among them, become spaces.
pub(crate) fn one_line(text: &str) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().map(|c| if breaks(c) { ' ' } else { c }).collect()
}

/// A cell of a Markdown table of llama-bench's kind: still readable by its scripts, but no markup and no pipe.
pub(crate) fn markdown_cell(text: &str) -> String {
    let mut cell = String::new();
    for c in one_line(text).chars() {
        match c {
            '&' => cell.push_str("&amp;"),
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            '|' | '\\' => cell.extend(['\\', c]),
            _ => cell.push(c),
        }
    }
    cell
}

/// Undoes [`markdown_cell`].
pub(crate) fn markdown_cell_back(cell: &str) -> String {
    let mut text = String::new();
    let mut chars = cell.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next_if(|c| matches!(c, '|' | '\\')).unwrap_or('\\')),
            _ => text.push(c),
        }
    }
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// A label's value of OpenMetrics.
pub(crate) fn label_value(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n").replace('\r', " ")
}

/// The message of a workflow command of GitHub Actions.
pub(crate) fn command_message(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a workflow command of GitHub Actions.
pub(crate) fn command_property(text: &str) -> String {
    command_message(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a|b\\<script>\"x\"</script>&lt;\n@everyone `c` %0A";

    #[test]
    fn cells_read_back() {
        let cell = markdown_cell(HOSTILE);
        assert!(!cell.contains(['<', '>', '\n']) && !cell.replace(r"\|", "").contains('|'), "{cell}");
        assert_eq!(markdown_cell_back(&cell), HOSTILE.replace('\n', " "));
    }

    #[test]
    fn labels_and_commands() {
        assert_eq!(label_value("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
        assert_eq!(command_message("50 %\r\n::error::x"), "50 %25%0D%0A::error::x");
        assert_eq!(command_property("a:b,c%"), "a%3Ab%2Cc%25");
    }
}
