//! A drawing as data: polygons, circles and lines of text in pixels, which both writers take as they are.

use std::fmt::Write as _;
use ttf_parser::Face;

/// A colour, `0xrrggbb`.
pub(crate) type Colour = u32;

pub(crate) const PAPER: Colour = 0xffffff;
pub(crate) const INK: Colour = 0x16191d;
pub(crate) const FAINT: Colour = 0x575f69;
pub(crate) const GRID: Colour = 0xdfe3e7;
/// Okabe and Ito's colours, which people with any kind of colour vision tell apart; the last one is for what has none of its own.
pub(crate) const COLOURS: [Colour; 7] =
    [0x0072b2, 0xd55e00, 0x009e73, 0xcc79a7, 0xe69f00, 0x56b4e9, 0x757575];

/// A line around or along a form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stroke {
    pub(crate) colour: Colour,
    pub(crate) width: f32,
    /// Lengths of dash and gap.
    pub(crate) dash: Option<[f32; 2]>,
}

impl Stroke {
    pub(crate) fn new(colour: Colour, width: f32) -> Self {
        Stroke { colour, width, dash: None }
    }

    pub(crate) fn dashed(self, yes: bool) -> Self {
        Stroke { dash: yes.then_some([3.0, 2.0]), ..self }
    }
}

/// How a form is painted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Paint {
    pub(crate) fill: Option<Colour>,
    pub(crate) stroke: Option<Stroke>,
}

/// Where a text stands from its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A line of text.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) x: f32,
    /// Of the baseline.
    pub(crate) y: f32,
    pub(crate) anchor: Anchor,
    pub(crate) size: f32,
    pub(crate) bold: bool,
    pub(crate) colour: Colour,
    /// Paper around the letters, where they stand over lines.
    pub(crate) halo: bool,
    pub(crate) text: String,
}

impl Text {
    /// Text in plain ink whose baseline begins, has its middle or ends at a point.
    pub(crate) fn new((x, y): (f32, f32), anchor: Anchor, size: f32, text: impl Into<String>) -> Self {
        Text { x, y, anchor, size, bold: false, colour: INK, halo: false, text: text.into() }
    }

    pub(crate) fn bold(self) -> Self {
        Text { bold: true, ..self }
    }

    pub(crate) fn colour(self, colour: Colour) -> Self {
        Text { colour, ..self }
    }

    pub(crate) fn halo(self) -> Self {
        Text { halo: true, ..self }
    }
}

/// A form.
#[derive(Debug, Clone)]
pub(crate) enum Form {
    /// A line through points, closed to a polygon or not.
    Line {
        points: Vec<(f32, f32)>,
        closed: bool,
    },
    Circle {
        x: f32,
        y: f32,
        radius: f32,
    },
}

/// What a drawing is made of.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Form(Form, Paint),
    /// A form that stands for a figure, with the figure in words.
    Mark(Form, Paint, String),
    Text(Text),
}

/// A drawing, the first item lowest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scene {
    pub(crate) width: f32,
    pub(crate) height: f32,
    pub(crate) title: String,
    /// What it shows, for those who do not see it.
    pub(crate) description: String,
    pub(crate) items: Vec<Item>,
}

impl Scene {
    pub(crate) fn line(&mut self, from: (f32, f32), to: (f32, f32), stroke: Stroke) {
        self.path(vec![from, to], stroke);
    }

    pub(crate) fn path(&mut self, points: Vec<(f32, f32)>, stroke: Stroke) {
        let paint = Paint { fill: None, stroke: Some(stroke) };
        self.items.push(Item::Form(Form::Line { points, closed: false }, paint));
    }

    pub(crate) fn text(&mut self, text: Text) {
        self.items.push(Item::Text(text));
    }

    /// The mark of a figure, with the figure in words.
    pub(crate) fn mark(&mut self, form: Form, paint: Paint, words: String) {
        self.items.push(Item::Mark(form, paint, words));
    }
}

/// The fonts that texts are measured by, and drawn with in pixels.
pub(crate) struct Fonts {
    plain: Face<'static>,
    bold: Face<'static>,
}

impl Fonts {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let plain = Face::parse(include_bytes!("../../../assets/font/DejaVuSans.subset.ttf"), 0)?;
        let bold = Face::parse(include_bytes!("../../../assets/font/DejaVuSans-Bold.subset.ttf"), 0)?;
        Ok(Fonts { plain, bold })
    }

    pub(crate) fn face(&self, bold: bool) -> &Face<'static> {
        if bold { &self.bold } else { &self.plain }
    }

    /// Width of a text in pixels. A letter that the font lacks counts as the widest.
    pub(crate) fn width(&self, text: &str, size: f32, bold: bool) -> f32 {
        let face = self.face(bold);
        let em = f32::from(face.units_per_em());
        let advance = |c: char| {
            face.glyph_index(c)
                .and_then(|id| face.glyph_hor_advance(id))
                .map_or(1.1, |units| f32::from(units) / em)
        };
        size * text.chars().map(advance).sum::<f32>()
    }

    /// `text`, its middle left out where it is wider than `width`: names differ at both ends.
    pub(crate) fn fitted(&self, text: &str, size: f32, bold: bool, width: f32) -> String {
        if self.width(text, size, bold) <= width {
            return text.to_owned();
        }
        let letters: Vec<char> = text.chars().collect();
        for kept in (1..letters.len()).rev() {
            let head = kept.div_ceil(2);
            let mut short: String = letters[..head].iter().collect();
            short.push('…');
            short.extend(&letters[letters.len() - (kept - head)..]);
            if self.width(&short, size, bold) <= width {
                return short;
            }
        }
        "…".into()
    }

    /// The words of `text` in lines no wider than `width`.
    pub(crate) fn wrapped(&self, text: &str, size: f32, width: f32) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            let word = self.fitted(word, size, false, width);
            if let Some(line) = lines.last_mut()
                && self.width(&format!("{line} {word}"), size, false) <= width
            {
                let _ = write!(line, " {word}");
                continue;
            }
            lines.push(word);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_a_width_at_their_middle() {
        let fonts = Fonts::new().unwrap();
        // 1995 of 2048 units, as the font's table of metrics has it
        assert!((fonts.width("mmmm", 100.0, false) - 4.0 * 100.0 * 1995.0 / 2048.0).abs() < 0.01);
        let name = "matmul_bf16_14x32_cpu_avx512_packed";
        let short = fonts.fitted(name, 12.0, false, 120.0);
        assert!(short.starts_with("matmul") && short.ends_with("packed") && short.contains('…'), "{short}");
        assert!(fonts.width(&short, 12.0, false) <= 120.0);
        assert_eq!(fonts.fitted("漢字漢字", 12.0, false, 5.0), "…");
        let lines = fonts.wrapped(&"word ".repeat(40), 12.0, 200.0);
        assert!(lines.len() > 3 && lines.iter().all(|line| fonts.width(line, 12.0, false) <= 200.0));
    }
}
