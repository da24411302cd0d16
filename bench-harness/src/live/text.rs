//! Text for terminals: what they can show, bars of blocks, and figures with their units.

use ratatui::style::{Color, Style};
use ratatui::symbols::bar;

use super::cpu::Clocks;

/// Bars of a terminal without Unicode.
const ASCII: bar::Set<'static> = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "=",
    five_eighths: "=",
    half: "-",
    three_eighths: "-",
    one_quarter: ".",
    one_eighth: ".",
    empty: " ",
};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Whether colours may be used.
    pub(crate) colour: bool,
    /// Whether blocks and lines may be used.
    pub(crate) unicode: bool,
}

impl Look {
    /// What this process' terminal can show, by `NO_COLOR` and the locale.
    pub(crate) fn of_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Look { colour: set("NO_COLOR").is_none(), unicode: unicode() }
    }

    /// Bars of nine heights.
    pub(super) fn bars(self) -> bar::Set<'static> {
        if self.unicode { bar::NINE_LEVELS } else { ASCII }
    }

    /// A text of figures as the terminal can show it.
    pub(super) fn plain(self, text: String) -> String {
        if self.unicode { text } else { text.replace('µ', "u") }
    }

    /// `colour`, where there are colours.
    pub(super) fn style(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

/// Whether the locale is one of UTF-8, as far as it says anything.
pub(crate) fn unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    is_unicode(["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).as_deref())
}

fn is_unicode(locale: Option<&str>) -> bool {
    let named = |locale: &str| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    };
    // without any, as in containers, terminals speak UTF-8 all the same
    locale.is_none_or(named)
}

/// Bars of one character each.
pub(crate) fn sparks(columns: &[Option<f64>], top: Option<f64>, look: Look) -> String {
    let bars = look.bars();
    let symbols = [
        bars.one_eighth,
        bars.one_quarter,
        bars.three_eighths,
        bars.half,
        bars.five_eighths,
        bars.three_quarters,
        bars.seven_eighths,
        bars.full,
    ];
    let symbol = |value: &Option<f64>| {
        let share = value.zip(top.filter(|top| *top > 0.0)).map(|(value, top)| (value / top).clamp(0.0, 1.0));
        // casts of what is between 0 and 1
        share.map_or(" ", |share| symbols[((share * 8.0).ceil() as usize).clamp(1, 8) - 1])
    };
    columns.iter().map(symbol).collect()
}

/// A bar of `width` characters, filled by `share`.
pub(crate) fn gauge(share: f64, width: usize, look: Look) -> String {
    let filled = ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
    let (full, empty) = if look.unicode { ("█", "░") } else { ("#", ".") };
    full.repeat(filled) + &empty.repeat(width - filled)
}

/// Figures in as few lines of `width` as hold them, each begun by a blank.
pub(crate) fn fill(figures: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for figure in figures {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 3 + figure.chars().count() <= width => {
                line.push_str("   ");
                line.push_str(figure);
            }
            _ => lines.push(format!(" {figure}")),
        }
    }
    lines.iter().map(|line| clip(line, width)).collect()
}

/// At most `width` characters.
pub(crate) fn clip(text: &str, width: usize) -> String {
    match text.chars().count() <= width {
        true => text.to_owned(),
        false => text.chars().take(width.saturating_sub(2)).chain("..".chars()).take(width).collect(),
    }
}

/// What is unknown is a dash.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

/// A share from 0 to 1 in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// A temperature.
pub(crate) fn degrees(celsius: f64, look: Look) -> String {
    format!("{celsius:.0} {}", if look.unicode { "°C" } else { "C" })
}

/// A clock in GHz.
pub(crate) fn mhz(mhz: f64) -> String {
    format!("{:.2} GHz", mhz / 1e3)
}

/// Lowest, mean and highest, where they differ.
pub(crate) fn clocks(clocks: Clocks) -> String {
    match clocks.max - clocks.min < 5.0 {
        true => mhz(clocks.mean),
        false => {
            format!("{:.2}..{:.2} GHz, mean {:.2}", clocks.min / 1e3, clocks.max / 1e3, clocks.mean / 1e3)
        }
    }
}

/// A time in seconds, minutes or hours.
pub(crate) fn seconds_text(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{} s", (s * 100.0).round() / 100.0),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_without_utf8_get_ascii() {
        for (locale, expected) in [
            (None, true),
            (Some("de_DE.UTF-8"), true),
            (Some("C.utf8"), true),
            (Some("C"), false),
            (Some("de_DE.ISO-8859-1"), false),
            (Some("ja_JP.eucJP"), false),
        ] {
            assert_eq!(is_unicode(locale), expected, "{locale:?}");
        }
        let ascii = Look { colour: false, unicode: false };
        assert_eq!(sparks(&[Some(0.0), None, Some(0.5), Some(1.0)], Some(1.0), ascii), ". -#");
        assert_eq!(gauge(0.5, 4, ascii), "##..");
    }

    #[test]
    fn times_and_texts_fit() {
        assert_eq!(
            (seconds_text(0.25), seconds_text(61.0), seconds_text(7260.0)),
            ("0.25 s".into(), "1 min 01 s".into(), "2 h 01 min".into())
        );
        assert_eq!(
            (clip("abcdef", 4), clip("abcdef", 1), clip("äöü", 3)),
            ("ab..".into(), ".".into(), "äöü".into())
        );
        assert_eq!(fill(&["a".repeat(5), "b".repeat(5)], 10).len(), 2);
    }
}
