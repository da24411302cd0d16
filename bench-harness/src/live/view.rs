//! Draws readings: full panels with graphs where there is room, a line for each device where there is little, and always something.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Sparkline, Wrap};
use std::collections::HashMap;
use std::time::Duration;

use super::history::History;
use super::sample::{DeviceReading, Part, Power, Reading};
use super::text::{Look, clip, clocks, degrees, fill, gauge, mhz, or_dash, percent, seconds_text, sparks};
use crate::report::units;

/// Columns of text beside a graph, where both fit.
const BESIDE: u16 = 60;
/// Tallest graph.
const TALLEST: u16 = 8;
/// A figure older than this many seconds, and older than the last reading, says so.
const STALE_S: f64 = 2.5;
/// What lies over the panels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Overlay {
    /// Nothing.
    #[default]
    None,
    /// The keys.
    Help,
    /// What cannot be read.
    Missing,
}

/// Order of the devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    /// As the machine has them.
    #[default]
    Device,
    /// Highest power first.
    Watts,
    /// Busiest first.
    Utilisation,
}

impl Sort {
    /// The next of all orders.
    pub(crate) fn next(self) -> Self {
        match self {
            Sort::Device => Sort::Watts,
            Sort::Watts => Sort::Utilisation,
            Sort::Utilisation => Sort::Device,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Device => "device",
            Sort::Watts => "watts",
            Sort::Utilisation => "use",
        }
    }
}

/// Figures of a device over time.
#[derive(Debug, Clone, Default)]
struct Histories {
    watts: History,
    utilisation: History,
    clock: History,
    temperature: History,
}

/// Everything that is drawn.
#[derive(Debug)]
pub(crate) struct State {
    reading: Reading,
    histories: HashMap<String, Histories>,
    look: Look,
    /// Time between two readings.
    pub(crate) interval: Duration,
    /// Whether readings are held.
    pub(crate) paused: bool,
    /// What lies over the panels.
    pub(crate) overlay: Overlay,
    /// Order of the devices.
    pub(crate) sort: Sort,
    /// Devices, or lines of an overlay, above the first that is shown.
    pub(crate) scroll: usize,
    /// What cannot be read and why, a line each.
    missing: Vec<String>,
}

impl State {
    /// Nothing was read yet.
    pub(crate) fn new(look: Look, interval: Duration, missing: Vec<String>) -> Self {
        State {
            reading: Reading::default(),
            histories: HashMap::new(),
            look,
            interval,
            paused: false,
            overlay: Overlay::None,
            sort: Sort::Device,
            scroll: 0,
            missing,
        }
    }

    /// Takes the next reading.
    pub(crate) fn push(&mut self, reading: Reading) {
        for device in &reading.devices {
            let of = self.histories.entry(device.id.clone()).or_default();
            of.watts.push(device.watts());
            of.utilisation.push(device.utilisation);
            of.clock.push(device.clock_mhz.map(|clocks| clocks.mean));
            of.temperature.push(device.temperature_c);
        }
        self.reading = reading;
    }

    /// How far it makes sense to scroll.
    pub(crate) fn lines(&self) -> usize {
        match self.overlay {
            Overlay::None => self.reading.devices.len().saturating_sub(1),
            Overlay::Help => help().len(),
            // each wraps into some
            Overlay::Missing => 4 * self.missing.len(),
        }
    }

    fn ordered(&self) -> Vec<&DeviceReading> {
        let mut list: Vec<&DeviceReading> = self.reading.devices.iter().collect();
        let by = |key: fn(&DeviceReading) -> Option<f64>| {
            // unknown comes last
            move |a: &&DeviceReading, b: &&DeviceReading| {
                key(b).unwrap_or(-1.0).total_cmp(&key(a).unwrap_or(-1.0))
            }
        };
        match self.sort {
            Sort::Device => {}
            Sort::Watts => list.sort_by(by(DeviceReading::watts)),
            Sort::Utilisation => list.sort_by(by(|device| device.utilisation)),
        }
        list
    }

    /// Lines for beside a measurement, at most `width` columns each: power, use, clock and temperature of what has them, with graphs.
    pub(crate) fn strip(&self, width: usize) -> Vec<String> {
        let shown = |device: &&DeviceReading| !device.power.is_empty() || device.part == Part::Cpu;
        let devices = self.reading.devices.iter().filter(shown);
        devices.map(|device| clip(&self.strip_of(device, width), width)).collect()
    }

    fn strip_of(&self, device: &DeviceReading, width: usize) -> String {
        let none = Histories::default();
        let history = self.histories.get(&device.id).unwrap_or(&none);
        let figures = [
            (watts(device), &history.watts),
            (device.utilisation.map(|u| format!("use {}", percent(u))), &history.utilisation),
            (device.clock_mhz.map(|clocks| mhz(clocks.mean)), &history.clock),
            (device.temperature_c.map(|celsius| degrees(celsius, self.look)), &history.temperature),
        ];
        let known: Vec<_> =
            figures.into_iter().filter_map(|(text, history)| Some((text?, history))).collect();
        let text: usize = known.iter().map(|(text, _)| text.chars().count() + 3).sum();
        let graph = (width.saturating_sub(8 + text) / known.len().max(1)).min(24);
        let cell = |(text, history): &(String, &History)| match graph {
            0..4 => format!("{text}  "),
            _ => format!("{text} {}  ", sparks(&history.columns(graph), history.peak(), self.look)),
        };
        format!("{:<7} {}", device.id, known.iter().map(cell).collect::<String>()).trim_end().to_owned()
    }
}

/// Draws everything onto a frame of any size.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    let foot = u16::from(area.height >= 4);
    let [head, body, keys] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(foot)]).areas(area);
    frame.render_widget(header(state, head.width), head);
    frame.render_widget(footer(state, keys.width), keys);
    panels(frame, body, state);
    match state.overlay {
        Overlay::None => {}
        Overlay::Help => over(frame, body, " keys ", help(), state),
        Overlay::Missing => over(frame, body, " what cannot be read ", missing(state), state),
    }
}

fn header(state: &State, width: u16) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut spans = vec![Span::styled("perjoule top", bold)];
    let seconds = state.reading.seconds;
    let rest = format!(
        "  every {}  for {}",
        seconds_text(state.interval.as_secs_f64()),
        seconds_text(seconds.round())
    );
    spans.push(Span::raw(rest));
    if state.paused {
        spans.push(Span::styled("  paused", bold.patch(state.look.style(Color::Yellow))));
    }
    if state.reading.devices.is_empty() {
        spans.push(Span::raw("  reading.."));
    }
    let mut line = Line::from(spans);
    if let Some(time) =
        state.reading.time.as_ref().filter(|time| line.width() + time.len() + 2 <= width as usize)
    {
        let gap = width as usize - line.width() - time.len();
        line.push_span(Span::raw(format!("{:gap$}{time}", "")));
    }
    line
}

fn footer(state: &State, width: u16) -> Line<'static> {
    let mut text = String::new();
    let missing = format!("m not readable ({})", state.missing.len());
    let sort = format!("s sort by {}", state.sort.name());
    for key in ["q quit", "h help", "p pause", "+/- interval", &sort, &missing] {
        let gap = if text.is_empty() { "" } else { "   " };
        if text.len() + gap.len() + key.len() > width as usize {
            break;
        }
        text.push_str(gap);
        text.push_str(key);
    }
    Line::styled(text, Style::new().add_modifier(Modifier::DIM))
}

fn help() -> Vec<String> {
    let keys = [
        "q, Esc, Ctrl-C   quit",
        "p, space         pause, go on",
        "+, -             read more often, more seldom",
        "s                sort by device, watts, use",
        "m                what cannot be read, and why",
        "up, down         scroll",
        "Ctrl-Z           to the shell; fg comes back",
        "",
        "Watts are the mean since the reading before, joules those since the start. Each figure says whether it is measured or modelled, and its boundary: what it contains. Figures of different boundaries contain one another and are never added. - is unknown.",
    ];
    keys.map(str::to_owned).to_vec()
}

fn missing(state: &State) -> Vec<String> {
    match state.missing.as_slice() {
        [] => vec!["Everything that is known of can be read.".to_owned()],
        list => list.iter().map(|line| format!("- {line}")).collect(),
    }
}

/// A text over the panels.
fn over(frame: &mut Frame<'_>, area: Rect, title: &'static str, lines: Vec<String>, state: &State) {
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    let block = match state.look.unicode && area.height > 4 && area.width > 24 {
        true => Block::bordered().title(title),
        false => Block::new().title(title),
    };
    let scroll = u16::try_from(state.scroll).unwrap_or(u16::MAX);
    frame.render_widget(Clear, area);
    frame.render_widget(
        Paragraph::new(lines).block(block).wrap(Wrap { trim: false }).scroll((scroll, 0)),
        area,
    );
}

fn panels(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let devices = state.ordered();
    if devices.is_empty() || area.is_empty() {
        return;
    }
    let wide = area.width >= BESIDE + 40;
    let width = if wide { BESIDE } else { area.width };
    let texts: Vec<Vec<Line<'_>>> =
        devices.iter().map(|device| lines(device, width as usize, state)).collect();
    // a heading, the text, and below narrow ones a graph where there is anything to draw
    let graph =
        |device: &DeviceReading| u16::from(graphed(device, state).is_some_and(|history| history.is_known()));
    let below = |device: &DeviceReading| if wide { 0 } else { graph(device) };
    let mut heights: Vec<u16> =
        devices.iter().zip(&texts).map(|(device, text)| 1 + text.len() as u16 + below(device)).collect();
    if heights.iter().sum::<u16>() > area.height {
        return compact(frame, area, &devices, state);
    }
    // what is left makes graphs taller
    let mut left = area.height - heights.iter().sum::<u16>();
    for _ in 0..TALLEST {
        for (height, device) in heights.iter_mut().zip(&devices) {
            if left > 0 && graph(device) > 0 && *height < TALLEST + 3 {
                (*height, left) = (*height + 1, left - 1);
            }
        }
    }
    let mut y = area.y;
    for ((device, text), height) in devices.iter().zip(texts).zip(heights) {
        panel(frame, Rect { y, height, ..area }, device, text, state, wide);
        y += height;
    }
}

/// What the graph of a device shows: its power, else its use.
fn graphed<'s>(device: &DeviceReading, state: &'s State) -> Option<&'s History> {
    let histories = state.histories.get(&device.id)?;
    Some(if histories.watts.is_known() { &histories.watts } else { &histories.utilisation })
}

fn panel(
    frame: &mut Frame<'_>,
    area: Rect,
    device: &DeviceReading,
    text: Vec<Line<'_>>,
    state: &State,
    wide: bool,
) {
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    frame.render_widget(heading(device, title.width as usize, state), title);
    let rows = text.len() as u16;
    let [text_area, graph_area] = match wide {
        true => Layout::horizontal([Constraint::Length(BESIDE), Constraint::Fill(1)]).areas(body),
        false => Layout::vertical([Constraint::Length(rows), Constraint::Fill(1)]).areas(body),
    };
    frame.render_widget(Paragraph::new(text), text_area);
    if let Some(history) = graphed(device, state) {
        graph(frame, graph_area, history, device, state);
    }
}

fn heading(device: &DeviceReading, width: usize, state: &State) -> Line<'static> {
    let rule = if state.look.unicode { "─" } else { "-" };
    let name = clip(&format!("{}  {}", device.id, device.name), width.saturating_sub(4));
    let rest = width.saturating_sub(name.chars().count() + 4);
    Line::from(vec![
        Span::raw(format!("{} ", rule.repeat(2))),
        Span::styled(name, state.look.style(Color::Cyan).add_modifier(Modifier::BOLD)),
        Span::raw(format!(" {}", rule.repeat(rest))),
    ])
}

fn graph(frame: &mut Frame<'_>, area: Rect, history: &History, device: &DeviceReading, state: &State) {
    let Some(peak) = history.peak().filter(|_| area.width > 2 && area.height > 0) else { return };
    let power =
        device.watts().is_some() || state.histories.get(&device.id).is_some_and(|h| h.watts.is_known());
    // the scale stands to the right, where the newest values are
    let scale = if power { format!(" {} W", units::si(peak)) } else { " 100 %".to_owned() };
    let room = if area.width > 30 { 13 } else { 0 };
    let [bars, label] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(room)]).areas(area);
    let top = if power { peak } else { 1.0 };
    let columns = history.columns(bars.width as usize);
    let each = state.interval.as_secs_f64() * history.points_per_column(bars.width as usize) as f64;
    let data: Vec<Option<u64>> = columns.iter().map(|value| level(value.as_ref(), top)).collect();
    // newest at the right edge
    let pad = (bars.width as usize).saturating_sub(data.len());
    let bars = Rect { x: bars.x + pad as u16, width: bars.width - pad as u16, ..bars };
    let sparkline = Sparkline::default()
        .data(&data)
        .max(1000)
        .bar_set(state.look.bars())
        .absent_value_symbol(" ")
        .style(state.look.style(Color::Green));
    frame.render_widget(sparkline, bars);
    let mut lines = vec![Line::from(scale)];
    if label.height > 1 {
        let span = seconds_text((each * columns.len() as f64).round());
        lines.resize(label.height as usize, Line::default());
        lines[label.height as usize - 1] = Line::from(format!(" {span}"));
    }
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(lines).style(dim), label);
}

/// Height of a bar in thousandths; what is known is never nothing.
fn level(value: Option<&f64>, top: f64) -> Option<u64> {
    let share = if top > 0.0 { value? / top } else { 0.0 };
    Some(((share * 1000.0).round() as u64).clamp(60, 1000))
}

/// The text of a panel, a line for each thing that the device has.
fn lines<'a>(device: &DeviceReading, width: usize, state: &State) -> Vec<Line<'a>> {
    let look = state.look;
    let mut lines: Vec<Line<'a>> = device.power.iter().map(|power| power_line(power, width, state)).collect();
    if device.power.is_empty() && device.part != Part::Memory {
        let share = device.power_share.map(|share| format!(", {} of an unpublished maximum", percent(share)));
        lines.push(Line::from(format!(" power unknown: no meter{}", share.unwrap_or_default())));
    }
    let mut figures = Vec::new();
    if device.part == Part::Cpu || device.part == Part::Gpu {
        figures.push(format!("use {}", or_dash(device.utilisation.map(percent))));
        figures.push(format!("clock {}", or_dash(device.clock_mhz.map(clocks))));
        figures.push(device.temperature_c.map_or("temperature -".into(), |celsius| degrees(celsius, look)));
    }
    if device.part == Part::Cpu {
        figures.push(format!("throttled {}", or_dash(device.throttled.map(|n| format!("{n:.0}x")))));
    }
    let optional = [
        device.memory_clock_mhz.map(|clock| format!("memory clock {}", mhz(clock))),
        device.power_limit_w.map(|limit| format!("limit {} W", units::si(limit))),
        device.fan.map(|fan| format!("fan {}", percent(fan))),
    ];
    figures.extend(optional.into_iter().flatten());
    lines.extend(fill(&figures, width).into_iter().map(Line::from));
    if let Some(reasons) = device.throttle_reasons.as_ref().filter(|reasons| !reasons.is_empty()) {
        let text = clip(&format!(" clocks lowered: {}", reasons.join(", ")), width);
        lines.push(Line::styled(text, look.style(Color::Red)));
    }
    if device.cores.len() > 1 {
        let room = width.saturating_sub(9).max(1);
        for (i, some) in device.cores.chunks(room).take(2).enumerate() {
            let bars: Vec<Option<f64>> = some.iter().copied().map(Some).collect();
            let label = if i == 0 { " cores" } else { "" };
            lines.push(Line::from(vec![
                Span::raw(format!("{label:<7}")),
                Span::styled(sparks(&bars, Some(1.0), look), look.style(Color::Green)),
            ]));
        }
    }
    if device.part == Part::Memory || device.memory_used.is_some() {
        let of = device.memory_used.zip(device.memory_total).filter(|(_, total)| *total > 0);
        let share = of.map(|(used, total)| used as f64 / total as f64);
        let figure = match (device.memory_used, device.memory_total) {
            (Some(used), Some(total)) => format!("{} of {}", units::bytes(used), units::bytes(total)),
            (Some(used), None) => format!("{} used", units::bytes(used)),
            _ => "-".into(),
        };
        let text = format!(" memory {figure}  ");
        let room = width.saturating_sub(text.chars().count() + 1).min(24);
        let bar = share.map_or(String::new(), |share| gauge(share, room, look));
        lines.push(Line::from(vec![
            Span::raw(clip(&text, width)),
            Span::styled(bar, look.style(Color::Green)),
        ]));
    }
    lines
}

fn power_line<'a>(power: &Power, width: usize, state: &State) -> Line<'a> {
    let look = state.look;
    let colour = if power.kind == "modelled" { Color::Yellow } else { Color::Green };
    let watts = power.watts.map_or("unknown".to_owned(), |watts| format!("{} W", units::si(watts)));
    let joules =
        power.joules.map_or(String::new(), |joules| look.plain(format!("  {}", units::joules(joules))));
    let stale = power.age_s.filter(|age| *age > STALE_S.max(1.5 * state.interval.as_secs_f64()));
    let age = stale.map_or(String::new(), |age| format!("  {age:.0} s old"));
    let unknown = power.unknown.as_ref().map_or(String::new(), |why| format!(": {why}"));
    let head = format!(" {watts:>7} ");
    let rest = format!("{joules}{age}  {}, {}{unknown}", power.boundary, power.source);
    let kind = power.kind.to_owned();
    let room = width.saturating_sub(head.chars().count() + kind.len());
    Line::from(vec![
        Span::styled(head, Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(kind, look.style(colour)),
        Span::raw(clip(&rest, room)),
    ])
}

/// A line for each device, for terminals with little room.
fn compact(frame: &mut Frame<'_>, area: Rect, devices: &[&DeviceReading], state: &State) {
    let rows = area.height as usize;
    let first = state.scroll.min(devices.len().saturating_sub(rows));
    let more = devices.len().saturating_sub(first + rows);
    // where lines are left over, graphs get some below their device
    let drawn = |device: &&&DeviceReading| graphed(device, state).is_some_and(History::is_known);
    let graphs = devices.iter().filter(drawn).count();
    let tall = (rows.saturating_sub(devices.len()) / graphs.max(1)).min(TALLEST as usize) as u16;
    let mut y = area.y;
    for (i, device) in devices.iter().skip(first).take(rows).enumerate() {
        let row = Rect { y, height: 1, ..area };
        y += 1;
        if more > 0 && i + 1 == rows && rows > 1 {
            frame.render_widget(Line::from(format!("{} more: scroll down", more + 1)), row);
            break;
        }
        let figures = [
            Some(
                watts(device)
                    .unwrap_or_else(|| if device.power.is_empty() { "-".into() } else { "unknown".into() }),
            ),
            device.utilisation.map(|u| format!("use {}", percent(u))),
            device.clock_mhz.map(|clocks| mhz(clocks.mean)),
            device.temperature_c.map(|celsius| degrees(celsius, state.look)),
            device.memory_used.map(units::bytes),
        ];
        let figures: Vec<String> = figures.into_iter().flatten().collect();
        let text = format!("{:<7} {}", clip(&device.id, 7), figures.join("  "));
        let text = clip(&text, area.width as usize);
        let used = (text.chars().count() as u16 + 2).max(40);
        frame.render_widget(Line::from(text), row);
        let Some(history) = graphed(device, state).filter(|history| history.is_known()) else { continue };
        if tall > 0 {
            graph(frame, Rect { y, height: tall, ..area }, history, device, state);
            y += tall;
        } else if area.width > used + 10 {
            let room = (area.width - used) as usize;
            let power = state.histories.get(&device.id).is_some_and(|of| of.watts.is_known());
            let top = if power { history.peak() } else { Some(1.0) };
            let bars = sparks(&history.columns(room), top, state.look);
            let bars = Span::styled(bars, state.look.style(Color::Green));
            frame.render_widget(bars, Rect { x: row.x + used, width: area.width - used, ..row });
        }
    }
}

/// The power of a device with the word for how it is known.
fn watts(device: &DeviceReading) -> Option<String> {
    let power = device.power.first()?;
    Some(format!("{} W {}", units::si(power.watts?), power.kind))
}
