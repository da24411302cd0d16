//! A still figure from records, as SVG or PNG: for a paper, a chat, a pull request.
//!
//! It carries its own context: the marks say in form and in words what is measured, imported or modelled, and the foot says on what, when
//! and how. The same records make the same bytes.

mod axis;
mod choose;
mod panels;
mod png;
mod scene;
mod svg;

use anyhow::Result;

use super::page::{self, words};
use panels::{BODY, Body, How, LINE, Panel, SMALL};
use scene::{Anchor, FAINT, Fonts, GRID, INK, Scene, Stroke, Text};

/// Pixels of the page's edge, between columns, and of a column.
const EDGE: f32 = 24.0;
const GUTTER: f32 = 32.0;
const COLUMN: f32 = 450.0;
/// Of a panel that stands alone.
const ALONE: f32 = 640.0;
/// Lines at the foot.
const FOOT: usize = 16;

/// The figure as SVG.
pub(crate) fn svg(input: &page::Input<'_>) -> Result<String> {
    Ok(svg::write(&scene(input, &Fonts::new()?)))
}

/// The figure as PNG, with `scale` pixels for each of the SVG's.
pub(crate) fn png(input: &page::Input<'_>, scale: f32) -> Result<Vec<u8>> {
    let fonts = Fonts::new()?;
    png::write(&scene(input, &fonts), &fonts, scale)
}

fn scene(input: &page::Input<'_>, fonts: &Fonts) -> Scene {
    let panels = choose::panels(input.records);
    let (columns, column) = if panels.len() > 1 { (2, COLUMN) } else { (1, ALONE) };
    let width = 2.0 * EDGE + columns as f32 * column + (columns - 1) as f32 * GUTTER;
    let text_width = width - 2.0 * EDGE;
    let mut scene = Scene { width, title: page::clip(input.title), ..Scene::default() };
    let title = fonts.fitted(&scene.title, 20.0, true, text_width);
    scene.text(Text::new((EDGE, EDGE + 18.0), Anchor::Start, 20.0, title).bold());
    let mut y = key(&mut scene, fonts, &panels, EDGE + 40.0) + 10.0;

    // each panel goes to the shorter column
    let mut ends = vec![y; columns];
    for panel in &panels {
        let at = if columns == 2 && ends[1] < ends[0] { 1 } else { 0 };
        let x = EDGE + at as f32 * (column + GUTTER);
        panel.draw(&mut scene, fonts, (x, ends[at]), column);
        ends[at] += panel.height(fonts, column) + 26.0;
    }
    y = ends.iter().copied().fold(y, f32::max);

    scene.line((EDGE, y), (width - EDGE, y), Stroke::new(GRID, 1.0));
    y += 6.0;
    let foot = words::foot(input.records, input.warnings.len());
    let mut lines: Vec<String> =
        foot.iter().flat_map(|line| fonts.wrapped(line, SMALL, text_width)).collect();
    if lines.len() > FOOT {
        lines.truncate(FOOT - 1);
        lines.push("More in the page that perjoule report makes of these records.".into());
    }
    for line in &lines {
        y += LINE;
        scene.text(Text::new((EDGE, y), Anchor::Start, SMALL, line.clone()).colour(FAINT));
    }
    scene.height = (y + EDGE - 8.0).ceil();
    let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
    scene.description = format!("{}. {}", titles.join("; "), foot.join(" "));
    scene
}

/// What the forms of marks stand for, as far as there are any; gives the end.
fn key(scene: &mut Scene, fonts: &Fonts, panels: &[Panel], top: f32) -> f32 {
    let mut hows: Vec<How> = panels
        .iter()
        .flat_map(|panel| match &panel.body {
            Body::Rows { rows, .. } => rows.iter().map(|row| row.how).collect::<Vec<_>>(),
            Body::Roofline { points, .. } => points.iter().map(|point| point.how).collect(),
            Body::Sweep { series, .. } => series.iter().flatten().map(|point| point.how).collect(),
        })
        .collect();
    hows.sort();
    hows.dedup();
    let words = |how: How| match how {
        How::Measured => "measured by perjoule",
        How::Imported => "imported: another tool's result",
        How::Modelled => "modelled, not measured",
        How::Unknown => "obtained in an unknown way",
    };
    let end = scene.width - EDGE;
    let (mut x, mut y) = (EDGE, top);
    for how in &hows {
        let needed = 18.0 + fonts.width(words(*how), BODY, false) + 22.0;
        if x > EDGE && x + needed > end {
            (x, y) = (EDGE, y + 18.0);
        }
        let (form, paint) = how.mark((x + 6.0, y + 8.0), 4.5, INK);
        scene.items.push(scene::Item::Form(form, paint));
        scene.text(Text::new((x + 18.0, y + 12.0), Anchor::Start, BODY, words(*how)));
        x += needed;
    }
    let lines = match (hows.contains(&How::Modelled), hows.is_empty()) {
        (_, true) => "Nothing in these records can be drawn.",
        (false, _) => "Lines are 95 % intervals.",
        (true, _) => "Lines are 95 % intervals; of modelled figures, dashed, the band of the model.",
    };
    if x > EDGE && x + fonts.width(lines, BODY, false) > end {
        (x, y) = (EDGE, y + 18.0);
    }
    scene.text(Text::new((x, y + 12.0), Anchor::Start, BODY, lines).colour(FAINT));
    y + 18.0
}
