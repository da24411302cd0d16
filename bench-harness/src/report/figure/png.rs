//! A drawing as PNG, its letters from the bundled font: the same pixels on every machine.

use anyhow::{Context, Result};
use tiny_skia::{
    FillRule, LineCap, LineJoin, Path, PathBuilder, Pixmap, Stroke as Pen, StrokeDash, Transform,
};
use ttf_parser::OutlineBuilder;

use super::scene::{Anchor, Colour, Fonts, Form, Item, PAPER, Paint, Scene, Stroke, Text};

fn ink(colour: Colour) -> tiny_skia::Paint<'static> {
    let [_, red, green, blue] = colour.to_be_bytes();
    let mut paint = tiny_skia::Paint { anti_alias: true, ..Default::default() };
    paint.set_color_rgba8(red, green, blue, 255);
    paint
}

fn pen(stroke: Stroke) -> Pen {
    Pen {
        width: stroke.width,
        dash: stroke.dash.and_then(|[dash, gap]| StrokeDash::new(vec![dash, gap], 0.0)),
        line_join: LineJoin::Round,
        line_cap: LineCap::Butt,
        ..Pen::default()
    }
}

fn path(form: &Form) -> Option<Path> {
    match form {
        Form::Circle { x, y, radius } => PathBuilder::from_circle(*x, *y, *radius),
        Form::Line { points, closed } => {
            let mut builder = PathBuilder::new();
            let mut points = points.iter();
            let (x, y) = points.next()?;
            builder.move_to(*x, *y);
            points.for_each(|(x, y)| builder.line_to(*x, *y));
            if *closed {
                builder.close();
            }
            builder.finish()
        }
    }
}

/// Outlines of letters on their way into a path: the font's units, upwards, become pixels, downwards.
struct Outline {
    builder: PathBuilder,
    scale: f32,
    x: f32,
    y: f32,
}

impl Outline {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, self.y - y * self.scale)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.builder.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.builder.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.builder.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.builder.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.builder.close();
    }
}

fn letters(fonts: &Fonts, text: &Text) -> Option<Path> {
    let face = fonts.face(text.bold);
    let scale = text.size / f32::from(face.units_per_em());
    let width = fonts.width(&text.text, text.size, text.bold);
    let x = match text.anchor {
        Anchor::Start => text.x,
        Anchor::Middle => text.x - width / 2.0,
        Anchor::End => text.x - width,
    };
    let mut outline = Outline { builder: PathBuilder::new(), scale, x, y: text.y };
    for c in text.text.chars() {
        // a letter that the font lacks is a box
        let id = face.glyph_index(c).unwrap_or_default();
        face.outline_glyph(id, &mut outline);
        outline.x += fonts.width(c.encode_utf8(&mut [0; 4]), text.size, text.bold);
    }
    outline.builder.finish()
}

/// The drawing with `scale` pixels for each of its own.
pub(crate) fn write(scene: &Scene, fonts: &Fonts, scale: f32) -> Result<Vec<u8>> {
    let (width, height) = ((scene.width * scale).ceil() as u32, (scene.height * scale).ceil() as u32);
    let mut pixels = Pixmap::new(width, height).context("the figure has no size")?;
    let [_, red, green, blue] = PAPER.to_be_bytes();
    pixels.fill(tiny_skia::Color::from_rgba8(red, green, blue, 255));
    let transform = Transform::from_scale(scale, scale);
    let mut paint = |path: Option<Path>, look: Paint| {
        // a form without extent leaves nothing to paint
        let Some(path) = path else { return };
        if let Some(colour) = look.fill {
            pixels.fill_path(&path, &ink(colour), FillRule::Winding, transform, None);
        }
        if let Some(stroke) = look.stroke {
            pixels.stroke_path(&path, &ink(stroke.colour), &pen(stroke), transform, None);
        }
    };
    for item in &scene.items {
        match item {
            Item::Form(form, look) | Item::Mark(form, look, _) => paint(path(form), *look),
            Item::Text(text) => {
                let outline = letters(fonts, text);
                if text.halo {
                    let around = Paint { fill: None, stroke: Some(Stroke::new(PAPER, 3.0)) };
                    paint(outline.clone(), around);
                }
                paint(outline, Paint { fill: Some(text.colour), stroke: None });
            }
        }
    }
    Ok(pixels.encode_png()?)
}
