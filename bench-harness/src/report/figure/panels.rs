//! Panels of a figure: each knows how high it is at a width, and draws itself.

use std::collections::HashSet;

use super::axis::Scale;
use super::scene::{
    Anchor, COLOURS, Colour, FAINT, Fonts, Form, GRID, INK, PAPER, Paint, Scene, Stroke, Text,
};

/// Sizes of letters: a heading, what one reads, and what one looks up.
pub(super) const HEADING: f32 = 15.0;
pub(super) const BODY: f32 = 12.0;
pub(super) const SMALL: f32 = 11.0;
/// Points of a roofline beyond which they are small, and none is told in words.
pub(super) const MANY: usize = 500;
/// From one line of small text to the next.
pub(super) const LINE: f32 = 15.0;
/// Height of a row whose mark stands beside its words, or below them; and of a heading of rows.
const BESIDE: f32 = 19.0;
const BELOW: f32 = 31.0;
const GROUP: f32 = 21.0;
/// From one name of a roof to the next.
const NAME: f32 = 13.0;
/// Room for the ticks of an axis upwards.
const UP: f32 = 46.0;

/// How a figure was obtained: a form of mark for each, and the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum How {
    Measured,
    Imported,
    Modelled,
    Unknown,
}

impl How {
    pub(super) fn of(word: &str) -> Self {
        match word {
            "measured" => How::Measured,
            "imported" => How::Imported,
            "modelled" => How::Modelled,
            _ => How::Unknown,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            How::Measured => "measured",
            How::Imported => "imported",
            How::Modelled => "modelled",
            How::Unknown => "obtained in an unknown way",
        }
    }

    /// The mark: a disc, a square, a hollow and dashed diamond, a hollow triangle.
    pub(super) fn mark(self, (x, y): (f32, f32), radius: f32, colour: Colour) -> (Form, Paint) {
        let polygon = |list: &[(f32, f32)]| Form::Line {
            points: list.iter().map(|(dx, dy)| (x + dx, y + dy)).collect(),
            closed: true,
        };
        let full = Paint { fill: Some(colour), stroke: Some(Stroke::new(PAPER, 0.8)) };
        let hollow = Paint { fill: Some(PAPER), stroke: Some(Stroke::new(colour, 1.5)) };
        let r = radius;
        match self {
            How::Measured => (Form::Circle { x, y, radius }, full),
            How::Imported => {
                let r = 0.9 * r;
                (polygon(&[(-r, -r), (r, -r), (r, r), (-r, r)]), full)
            }
            How::Modelled => {
                let r = 1.3 * r;
                let dashed = Paint { stroke: Some(Stroke::new(colour, 1.5).dashed(true)), ..hollow };
                (polygon(&[(0.0, -r), (r, 0.0), (0.0, r), (-r, 0.0)]), dashed)
            }
            How::Unknown => (polygon(&[(0.0, -1.2 * r), (1.2 * r, r), (-1.2 * r, r)]), hollow),
        }
    }
}

/// A figure with its interval on a line of its own.
#[derive(Debug)]
pub(super) struct Row {
    /// What it has in common with its neighbours, how it was obtained included: a heading.
    pub(super) group: String,
    pub(super) label: String,
    /// Value and interval as a person reads them.
    pub(super) shown: String,
    pub(super) value: f64,
    pub(super) interval: Option<(f64, f64)>,
    pub(super) how: How,
    pub(super) colour: Colour,
}

/// A point of a plot with two axes.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) interval: Option<(f64, f64)>,
    pub(super) how: How,
    pub(super) colour: Colour,
    pub(super) words: String,
}

/// An upper limit of arithmetic: names, value, whether only modelled.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) label: String,
    pub(super) gflops: f64,
    pub(super) modelled: bool,
}

#[derive(Debug)]
pub(super) enum Body {
    /// Rows, and a value that none should exceed.
    Rows {
        rows: Vec<Row>,
        limit: Option<f64>,
    },
    Roofline {
        points: Vec<Point>,
        limits: Vec<Limit>,
        gbps: Option<f64>,
    },
    /// Points of each series in the order of x, joined by a line.
    Sweep {
        series: Vec<Vec<Point>>,
        x: &'static str,
    },
}

#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    /// How to read it, and what is left out.
    pub(super) note: String,
    /// What values are, with the unit.
    pub(super) axis: &'static str,
    /// Colours and what they stand for.
    pub(super) legend: Vec<(Colour, String)>,
    pub(super) body: Body,
}

impl Panel {
    fn head(&self, fonts: &Fonts, width: f32) -> f32 {
        let notes = fonts.wrapped(&self.note, SMALL, width).len();
        HEADING + 8.0 + LINE * notes as f32 + self.legend_height(fonts, width) + 4.0
    }

    /// Height at a width, all in pixels.
    pub(super) fn height(&self, fonts: &Fonts, width: f32) -> f32 {
        let body = match &self.body {
            Body::Rows { rows, .. } => {
                let row = if beside(fonts, rows, width).is_some() { BESIDE } else { BELOW };
                let groups = rows.chunk_by(|a, b| a.group == b.group).count();
                row * rows.len() as f32 + GROUP * groups as f32 + 40.0
            }
            Body::Roofline { .. } => 340.0,
            Body::Sweep { .. } => 260.0,
        };
        self.head(fonts, width) + body
    }

    /// Where each entry of the legend begins, below the notes; long ones get lines of their own.
    fn entries(&self, fonts: &Fonts, width: f32) -> Vec<(f32, f32, Colour, String)> {
        let (mut x, mut y) = (0.0, 0.0);
        let mut list = Vec::new();
        for (colour, name) in &self.legend {
            let name = fonts.fitted(name, SMALL, false, width - 16.0);
            let needed = fonts.width(&name, SMALL, false) + 32.0;
            if x > 0.0 && x + needed - 16.0 > width {
                (x, y) = (0.0, y + LINE);
            }
            list.push((x, y, *colour, name));
            x += needed;
        }
        list
    }

    fn legend_height(&self, fonts: &Fonts, width: f32) -> f32 {
        self.entries(fonts, width).last().map_or(0.0, |(_, y, _, _)| y + LINE + 2.0)
    }

    pub(super) fn draw(&self, scene: &mut Scene, fonts: &Fonts, (x, y): (f32, f32), width: f32) {
        let title = fonts.fitted(&self.title, HEADING, true, width);
        scene.text(Text::new((x, y + HEADING), Anchor::Start, HEADING, title).bold());
        let mut below = y + HEADING + 8.0;
        for line in fonts.wrapped(&self.note, SMALL, width) {
            scene.text(Text::new((x, below + 10.0), Anchor::Start, SMALL, line).colour(FAINT));
            below += LINE;
        }
        for (dx, dy, colour, name) in self.entries(fonts, width) {
            let (left, top) = (x + dx, below + dy + 3.0);
            let square = vec![(left, top), (left + 9.0, top), (left + 9.0, top + 9.0), (left, top + 9.0)];
            let paint = Paint { fill: Some(colour), stroke: None };
            scene.items.push(super::scene::Item::Form(Form::Line { points: square, closed: true }, paint));
            scene.text(Text::new((left + 14.0, top + 8.5), Anchor::Start, SMALL, name));
        }
        // above an axis upwards stands its title
        let title = if matches!(self.body, Body::Rows { .. }) { 0.0 } else { 16.0 };
        let top = y + self.head(fonts, width) + title;
        let bottom = y + self.height(fonts, width) - 36.0;
        match &self.body {
            Body::Rows { rows, limit } => {
                self.rows(scene, fonts, rows, *limit, (x, x + width), (top, bottom));
            }
            Body::Roofline { points, limits, gbps } => {
                self.roofline(scene, fonts, points, limits, *gbps, (x + UP, x + width), (top, bottom));
            }
            Body::Sweep { series, x: what } => {
                self.sweep(scene, fonts, series, what, (x + UP, x + width - 8.0), (top, bottom));
            }
        }
    }

    fn rows(
        &self,
        scene: &mut Scene,
        fonts: &Fonts,
        rows: &[Row],
        limit: Option<f64>,
        (left, right): (f32, f32),
        (top, bottom): (f32, f32),
    ) {
        let room = beside(fonts, rows, right - left);
        // values stand right of a limit's line, not on it
        let values = rows.iter().map(|row| fonts.width(&row.shown, BODY, false)).fold(0.0, f32::max);
        let below = (left, if limit.is_some() { right - values - 8.0 } else { right });
        let (start, end) = room.map_or(below, |(label, shown)| (left + label + 8.0, right - shown - 8.0));
        let ends = rows.iter().filter_map(|row| row.interval).flat_map(|(low, high)| [low, high]);
        let values = rows.iter().map(|row| row.value).chain(ends);
        let mut scale = Scale::fitting(values.chain(limit), start + 6.0, end - 6.0);
        if let Some(limit) = limit {
            // a share is read from 0 on
            let highest = rows.iter().map(|row| row.value).fold(limit, f64::max);
            scale = Scale { log: false, from: 0.0, to: highest * 1.06, ..scale };
        }
        across(scene, fonts, &scale, (top, bottom), self.axis);
        if let Some(limit) = limit {
            scene.line((scale.at(limit), top), (scale.at(limit), bottom), Stroke::new(INK, 1.5));
        }
        let mut y = top;
        for group in rows.chunk_by(|a, b| a.group == b.group) {
            let name = group.first().map_or("", |row| &row.group);
            let name = fonts.fitted(name, SMALL, true, right - left);
            scene.text(Text::new((left, y + 14.0), Anchor::Start, SMALL, name).bold().halo());
            y += GROUP;
            for row in group {
                let width = room
                    .map_or(right - left - fonts.width(&row.shown, BODY, false) - 12.0, |(label, _)| label);
                let label = fonts.fitted(&row.label, BODY, false, width);
                scene.text(Text::new((left, y + 11.0), Anchor::Start, BODY, label).halo());
                scene.text(Text::new((right, y + 11.0), Anchor::End, BODY, row.shown.clone()).halo());
                let middle = if room.is_some() { y + 7.0 } else { y + 21.5 };
                one_row(scene, &scale, row, middle);
                y += if room.is_some() { BESIDE } else { BELOW };
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // two of them are one rectangle
    fn roofline(
        &self,
        scene: &mut Scene,
        fonts: &Fonts,
        points: &[Point],
        limits: &[Limit],
        gbps: Option<f64>,
        (left, right): (f32, f32),
        (top, bottom): (f32, f32),
    ) {
        let peak = limits.iter().map(|limit| limit.gflops).fold(0.0, f64::max);
        let ridge = gbps.map_or(0.0, |gbps| peak / gbps);
        let range = |of: fn(&Point) -> f64| {
            points.iter().map(of).fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(x), high.max(x)))
        };
        let ((x_low, x_high), (y_low, y_high)) = (range(|p| p.x), range(|p| p.y));
        let from = if ridge > 0.0 { (x_low / 2.0).min(ridge / 4.0) } else { x_low / 2.0 };
        let across_scale =
            Scale { log: true, from, to: (x_high * 2.0).max(ridge * 4.0), start: left, end: right };
        // above the roofs there is room for their names
        let lines: usize = limits.iter().map(|limit| limit.label.lines().count()).sum();
        let room = (NAME * (lines.min(9) + 2) as f32 / (bottom - top)) as f64;
        let (low, high) = (y_low / 2.0, y_high.max(peak));
        let to = low * (high / low).powf(1.0 / (1.0 - room));
        let up = Scale { log: true, from: low, to, start: bottom, end: top };
        across(scene, fonts, &across_scale, (top, bottom), "arithmetic intensity, flop/byte");
        upwards(scene, &up, (left, right), self.axis);
        if let Some(gbps) = gbps {
            let start = from.max(up.from / gbps);
            let end = if ridge > 0.0 { ridge } else { across_scale.to };
            let at = |x: f64| (across_scale.at(x), up.at(x * gbps));
            scene.line(at(start), at(end), Stroke::new(INK, 1.8));
            let words = format!("slope: memory read {} GB/s", crate::report::units::si(gbps));
            let words = fonts.fitted(&words, SMALL, false, right - left - 8.0);
            scene.text(Text::new((left + 5.0, top + 12.0), Anchor::Start, SMALL, words).halo());
        }
        // lines that lie too close for the names of the lower ones to stand between them have their names above the highest
        let mut order: Vec<&Limit> = limits.iter().collect();
        order.sort_by(|a, b| a.gflops.total_cmp(&b.gflops));
        let mut names: Vec<(f32, Vec<&str>)> = Vec::new();
        for limit in order {
            let y = up.at(limit.gflops);
            let start = gbps.map_or(left, |gbps| across_scale.at(limit.gflops / gbps));
            scene.line((start, y), (right, y), Stroke::new(INK, 1.8).dashed(limit.modelled));
            let lines = limit.label.lines().rev();
            match names.last_mut() {
                Some((top, list)) if *top - y < NAME * list.len() as f32 + 8.0 => {
                    *top = y;
                    list.extend(lines);
                }
                _ => names.push((y, lines.collect())),
            }
        }
        for (y, list) in names {
            for (i, line) in list.into_iter().enumerate() {
                let words = fonts.fitted(line, SMALL, false, right - left - 8.0);
                let at = (right - 2.0, y - 5.0 - NAME * i as f32);
                scene.text(Text::new(at, Anchor::End, SMALL, words).halo());
            }
        }
        // of many points those that cover one another are drawn once
        let many = points.len() > MANY;
        let mut seen = HashSet::new();
        for point in points {
            let at = (across_scale.at(point.x), up.at(point.y));
            if many && !seen.insert((at.0.round() as i32, at.1.round() as i32, point.colour, point.how)) {
                continue;
            }
            let (form, paint) = point.how.mark(at, if many { 2.4 } else { 3.8 }, point.colour);
            scene.mark(form, paint, point.words.clone());
        }
    }

    fn sweep(
        &self,
        scene: &mut Scene,
        fonts: &Fonts,
        series: &[Vec<Point>],
        what: &str,
        (left, right): (f32, f32),
        (top, bottom): (f32, f32),
    ) {
        let all = || series.iter().flatten();
        let (low, high) = all().fold((f64::INFINITY, 0.0f64), |(low, high), p| (low.min(p.x), high.max(p.x)));
        let wide = Scale { log: true, from: low / 1.2, to: high * 1.2, start: left, end: right };
        let ends = all().filter_map(|p| p.interval).flat_map(|(low, high)| [low, high]);
        let up = Scale::fitting(all().map(|p| p.y).chain(ends), bottom, top);
        let mut sizes: Vec<f64> = all().map(|p| p.x).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.dedup();
        let ticks = sizes.into_iter().map(|size| (size, format!("{size}"))).collect();
        ticks_across(scene, fonts, &wide, ticks, (top, bottom), what);
        upwards(scene, &up, (left, right), self.axis);
        for points in series {
            // of several results of one size the line goes through the median
            let sizes = points.chunk_by(|a, b| a.x == b.x);
            let line = sizes.filter_map(|list| {
                let ys: Vec<f64> = list.iter().map(|p| p.y).collect();
                Some((wide.at(list.first()?.x), up.at(perjoule_record::stats::median(&ys)?)))
            });
            let line = line.collect();
            let modelled = points.iter().all(|p| p.how == How::Modelled);
            if let Some(first) = points.first() {
                scene.path(line, Stroke::new(first.colour, 1.5).dashed(modelled));
            }
            for p in points {
                let x = wide.at(p.x);
                if let Some((low, high)) = p.interval {
                    let ends = ((x, up.at(low)), (x, up.at(high)));
                    scene.line(ends.0, ends.1, Stroke::new(p.colour, 1.2).dashed(p.how == How::Modelled));
                }
                let (form, paint) = p.how.mark((x, up.at(p.y)), 4.2, p.colour);
                scene.mark(form, paint, p.words.clone());
            }
        }
    }
}

/// The widths of labels and of values, where both leave room for marks between them.
fn beside(fonts: &Fonts, rows: &[Row], width: f32) -> Option<(f32, f32)> {
    let widest =
        |of: fn(&Row) -> &str| rows.iter().map(|row| fonts.width(of(row), BODY, false)).fold(0.0, f32::max);
    let (label, shown) = (widest(|row| &row.label), widest(|row| &row.shown));
    (label + shown + 16.0 < 0.6 * width).then_some((label, shown))
}

fn one_row(scene: &mut Scene, scale: &Scale, row: &Row, middle: f32) {
    let at = scale.at(row.value);
    if !scale.log {
        scene.line((scale.start, middle), (at, middle), Stroke::new(GRID, 5.0));
    }
    if let Some((low, high)) = row.interval {
        let (a, b) = (scale.at(low), scale.at(high));
        let dashed = row.how == How::Modelled;
        scene.line((a, middle), (b, middle), Stroke::new(row.colour, 1.5).dashed(dashed));
        for end in [a, b] {
            scene.line((end, middle - 3.5), (end, middle + 3.5), Stroke::new(row.colour, 1.2));
        }
    }
    let (form, paint) = row.how.mark((at, middle), 4.2, row.colour);
    scene.mark(form, paint, format!("{}: {} {}, {}", row.group, row.label, row.shown, row.how.word()));
}

/// Grid, ticks and title of an axis from left to right. Of two ticks whose words would touch the second has none.
fn across(scene: &mut Scene, fonts: &Fonts, scale: &Scale, ends: (f32, f32), title: &str) {
    let most = ((scale.end - scale.start) / 52.0).clamp(3.0, 8.0) as usize;
    ticks_across(scene, fonts, scale, scale.ticks(most), ends, title);
}

fn ticks_across(
    scene: &mut Scene,
    fonts: &Fonts,
    scale: &Scale,
    ticks: Vec<(f64, String)>,
    (top, bottom): (f32, f32),
    title: &str,
) {
    let mut free = f32::NEG_INFINITY;
    for (value, word) in ticks {
        let x = scale.at(value);
        scene.line((x, top), (x, bottom), Stroke::new(GRID, 1.0));
        let half = fonts.width(&word, SMALL, false) / 2.0;
        if x - half > free {
            scene.text(Text::new((x, bottom + 14.0), Anchor::Middle, SMALL, word));
            free = x + half + 6.0;
        }
    }
    scene.line((scale.start, bottom), (scale.end, bottom), Stroke::new(FAINT, 1.0));
    let middle = (scale.start + scale.end) / 2.0;
    scene.text(Text::new((middle, bottom + 29.0), Anchor::Middle, SMALL, title).colour(FAINT));
}

/// Grid and ticks of an axis upwards, its title above.
fn upwards(scene: &mut Scene, scale: &Scale, (left, right): (f32, f32), title: &str) {
    for (value, word) in scale.ticks(7) {
        let y = scale.at(value);
        scene.line((left, y), (right, y), Stroke::new(GRID, 1.0));
        scene.text(Text::new((left - 5.0, y + 4.0), Anchor::End, SMALL, word));
    }
    scene.line((left, scale.start), (left, scale.end), Stroke::new(FAINT, 1.0));
    scene.text(Text::new((left - UP, scale.end - 6.0), Anchor::Start, SMALL, title).colour(FAINT));
}

/// The colour of the i-th of several names.
pub(super) fn colour(i: usize) -> Colour {
    COLOURS[i % (COLOURS.len() - 1)]
}

/// The colour of what has none of its own.
pub(super) fn grey() -> Colour {
    COLOURS[COLOURS.len() - 1]
}
