//! Plain tables for terminals and Markdown.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, LineStyle, TableStyle};

/// A rule below the header and no other line.
const RULED: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Side that a column leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// For whom a table is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A terminal or a log.
    Plain,
    /// A terminal with colours.
    Colour,
    /// A Markdown page.
    Markdown,
}

/// A header and rows of text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    header: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new<const N: usize>(header: [(&str, Align); N]) -> Self {
        Table { header: header.map(|(name, align)| (name.to_owned(), align)).to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// The table as text, with a newline at the end.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(if style == Style::Markdown { ASCII_MARKDOWN } else { RULED });
        table.set_content_arrangement(ContentArrangement::Disabled);
        let flat = |text: &str| match style {
            // a Markdown cell is one line
            Style::Markdown => {
                text.split('\n').map(|line| markdown(line.trim())).collect::<Vec<_>>().join(" ")
            }
            _ => printable(text),
        };
        let side = |align: Align| match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        };
        let header = self.header.iter().map(|(name, align)| {
            let cell = Cell::new(flat(name)).set_alignment(side(*align));
            if style == Style::Colour { cell.add_attribute(Attribute::Bold) } else { cell }
        });
        table.set_header(header);
        for row in &self.rows {
            let cells = row.iter().zip(&self.header);
            table.add_row(cells.map(|(text, (_, align))| Cell::new(flat(text)).set_alignment(side(*align))));
        }
        if style == Style::Colour {
            table.enforce_styling();
        }
        let mut lines: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        if self.rows.is_empty() {
            lines.push_str(" (nothing)\n");
        }
        lines
    }
}

/// Text without characters that would move the cursor or change colours; line breaks stay. Names come from files of others.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// [`printable`] text on one line: a line that a name begins could be a command to whoever reads logs.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\u{fffd}")
}

/// Text as Markdown shows it, in a cell or beside a table: no markup, no HTML, one line.
pub(crate) fn markdown(text: &str) -> String {
    let mut out = String::new();
    for c in printable(text).replace('\n', " ").chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '|' | '\\' | '`' | '*' | '[' | ']' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_hold_stays_text() {
        let mut table = Table::new([("name", Align::Left)]);
        table.row(["<script>a|b</script> [x](y) `c` *d*\u{1b}[31m".into()]);
        let text = table.render(Style::Markdown);
        assert!(text.contains("&lt;script&gt;a\\|b&lt;/script&gt; \\[x\\](y) \\`c\\` \\*d\\*"), "{text}");
        assert!(!text.contains('\u{1b}') && !table.render(Style::Plain).contains('\u{1b}'));
    }

    #[test]
    fn numbers_lean_right_and_markdown_stays_one_line_a_row() {
        let mut table = Table::new([("name\nunit", Align::Left), ("value", Align::Right)]);
        table.row(["a|b\n  c".into(), "1".into()]);
        table.row(["d".into(), "100".into()]);
        let plain = table.render(Style::Plain);
        assert!(plain.lines().any(|line| line.ends_with("  1")), "{plain}");
        assert!(plain.contains('─') && !plain.contains('\u{1b}'));
        let markdown = table.render(Style::Markdown);
        assert_eq!(markdown.lines().count(), 4, "{markdown}");
        assert!(markdown.contains("a\\|b c"));
        assert!(table.render(Style::Colour).contains("\u{1b}[1m"));
    }
}
