//! A drawing as SVG: no script, no link, nothing from elsewhere.

use std::fmt::Write as _;

use super::scene::{Anchor, Colour, Form, Item, PAPER, Paint, Scene, Text};

/// Text in XML: markup escaped, and characters that XML has no spelling for replaced.
fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A length with a tenth of a pixel.
fn px(length: f32) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn hex(colour: Colour) -> String {
    format!("#{colour:06x}")
}

fn paint(paint: &Paint) -> String {
    let mut text = format!(" fill=\"{}\"", paint.fill.map_or_else(|| "none".into(), hex));
    if let Some(stroke) = paint.stroke {
        let _ = write!(text, " stroke=\"{}\" stroke-width=\"{}\"", hex(stroke.colour), px(stroke.width));
        if let Some([dash, gap]) = stroke.dash {
            let _ = write!(text, " stroke-dasharray=\"{} {}\"", px(dash), px(gap));
        }
    }
    text
}

/// The opening of a form's element, without its end.
fn form(form: &Form) -> (&'static str, String) {
    match form {
        Form::Line { points, closed } => {
            let name = if *closed { "polygon" } else { "polyline" };
            let list: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect();
            (name, format!("<{name} points=\"{}\"", list.join(" ")))
        }
        Form::Circle { x, y, radius } => {
            ("circle", format!("<circle cx=\"{}\" cy=\"{}\" r=\"{}\"", px(*x), px(*y), px(*radius)))
        }
    }
}

fn text(text: &Text) -> String {
    let anchor = match text.anchor {
        Anchor::Start => "",
        Anchor::Middle => " text-anchor=\"middle\"",
        Anchor::End => " text-anchor=\"end\"",
    };
    let bold = if text.bold { " font-weight=\"bold\"" } else { "" };
    let halo = if text.halo {
        format!(
            " stroke=\"{}\" stroke-width=\"3\" stroke-linejoin=\"round\" paint-order=\"stroke\"",
            hex(PAPER)
        )
    } else {
        String::new()
    };
    format!(
        "<text x=\"{}\" y=\"{}\" font-size=\"{}\" fill=\"{}\"{anchor}{bold}{halo}>{}</text>\n",
        px(text.x),
        px(text.y),
        px(text.size),
        hex(text.colour),
        escaped(&text.text)
    )
}

/// The drawing as a file.
pub(crate) fn write(scene: &Scene) -> String {
    let (w, h) = (px(scene.width), px(scene.height));
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" \
         aria-labelledby=\"title desc\" font-family=\"'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif\">\n\
         <title id=\"title\">{}</title>\n<desc id=\"desc\">{}</desc>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n",
        escaped(&scene.title),
        escaped(&scene.description),
        hex(PAPER)
    );
    for item in &scene.items {
        match item {
            Item::Form(shape, look) => {
                let _ = writeln!(out, "{}{}/>", form(shape).1, paint(look));
            }
            Item::Mark(shape, look, words) if words.is_empty() => {
                let _ = writeln!(out, "{} class=\"mark\"{}/>", form(shape).1, paint(look));
            }
            Item::Mark(shape, look, words) => {
                let (name, open) = form(shape);
                let _ = writeln!(
                    out,
                    "{open} class=\"mark\"{}><title>{}</title></{name}>",
                    paint(look),
                    escaped(words)
                );
            }
            Item::Text(line) => out += &text(line),
        }
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        let safe = escaped("<script>\u{0}\u{ffff}\"'&]]>");
        assert_eq!(safe, "&lt;script&gt; \u{fffd}&quot;&#39;&amp;]]&gt;");
    }
}
