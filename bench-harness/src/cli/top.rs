//! `perjoule top`: power, use, clocks and temperature of every device, live.

use anyhow::{Context, Result, ensure};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use super::meters::MeterArgs;
use super::{Ended, environment};
use crate::live::sample::{DeviceReading, Reading, Roots, Sampler};
use crate::live::text::{Look, degrees, mhz, or_dash, percent};
use crate::live::view::{self, Overlay, State};
use crate::measure::interrupted;
use crate::report::{Align, Style, Table, units};

/// Examples below the help.
pub(super) const TOP_EXAMPLES: &str = "Examples:
  perjoule top                                    live, until q
  perjoule top --once                             one reading as a table
  perjoule top --jsonl --interval 500ms --count 20 | jq '.devices[0].power[0].watts'
  perjoule top --csv --count 60 > minute.csv      a line for each device and second
  perjoule top --meter /dev/ttyUSB0               with a meter at the wall socket";

/// How often a key is waited for, and Ctrl-C looked for.
const GLANCE: Duration = Duration::from_millis(100);
/// Intervals that + and - step through, in milliseconds.
const INTERVALS: [u64; 8] = [200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Time between two readings, from 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one reading as a table; it takes one interval
    #[arg(long, conflicts_with_all = ["jsonl", "csv", "count"])]
    once: bool,
    /// Print one reading as a JSON object; it takes one interval
    #[arg(long, conflicts_with_all = ["jsonl", "csv", "count"])]
    json: bool,
    /// Print a JSON object a line, one each interval
    #[arg(long, conflicts_with = "csv")]
    jsonl: bool,
    /// Print comma-separated values, a line for each device and interval
    #[arg(long)]
    csv: bool,
    /// End after this many readings
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    meters: MeterArgs,
}

/// `1`, `1s`, `500ms` or `2m`.
fn interval(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a time from 100ms to 1h such as 1s, 500ms or 2m, not {text:?}");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    let seconds = digits.trim().parse::<f64>().map_err(|_| expected())? * unit;
    let within = (0.1..=3600.0).contains(&seconds);
    Duration::try_from_secs_f64(seconds).ok().filter(|_| within).ok_or_else(expected)
}

pub(crate) fn run(args: &TopArgs) -> Result<Ended> {
    let environment = environment();
    let threads = environment.cpu_count.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let terminal = std::io::stdout().is_terminal();
    let live = terminal && !(args.once || args.json || args.jsonl || args.csv);
    // a count is for what is written line by line
    ensure!(
        args.count.is_none() || args.jsonl || args.csv || live,
        "--count is for --jsonl and --csv, or a terminal: without one of them a single reading is printed"
    );
    let meters = args.meters.discover(&environment, threads)?;
    let cpu = environment.cpu_model.as_deref().unwrap_or("unknown processor");
    let sampler = Sampler::new(&meters.live(), cpu, Roots::default());
    let mut missing = sampler.missing();
    missing.extend(meters.missing());
    if live {
        let look = Look::of_environment();
        return watch(args, sampler, State::new(look, args.interval, missing));
    }
    let hint = !(args.once || args.json || args.jsonl || args.csv);
    if hint {
        eprintln!("stdout is no terminal: one reading follows; --jsonl or --csv print one each interval");
    }
    print(args, sampler, &missing)
}

/// Prints readings one by one.
fn print(args: &TopArgs, mut sampler: Sampler, missing: &[String]) -> Result<Ended> {
    let mut out = std::io::stdout().lock();
    let lines = args.jsonl || args.csv;
    let count = if lines { args.count.unwrap_or(u64::MAX) } else { 1 };
    let mut next = Instant::now();
    for i in 0..count {
        next += args.interval;
        if !sleep_until(next, &mut sampler) {
            return Ok(Ended::Interrupted);
        }
        let reading = sampler.reading();
        let text = match (args.jsonl, args.csv, args.json) {
            (true, ..) => format!("{}\n", serde_json::to_string(&reading)?),
            (_, true, _) => csv(&reading, i == 0)?,
            (.., true) => format!("{}\n", serde_json::to_string_pretty(&reading)?),
            _ => table(&reading, missing.len()),
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")?;
    }
    Ok(Ended::Done)
}

/// Reads what is due until then; `false` when interrupted.
fn sleep_until(end: Instant, sampler: &mut Sampler) -> bool {
    loop {
        let now = Instant::now();
        if interrupted() {
            return false;
        }
        if now >= end {
            return true;
        }
        let due = sampler.due().unwrap_or(end).max(now + Duration::from_millis(1));
        std::thread::sleep(due.min(end).min(now + GLANCE).duration_since(now));
        sampler.poll();
    }
}

/// One reading as a table.
fn table(reading: &Reading, missing: usize) -> String {
    let look = Look::of_environment();
    let mut table = Table::new([
        ("device", Align::Left),
        ("power", Align::Right),
        ("how", Align::Left),
        ("energy", Align::Right),
        ("use", Align::Right),
        ("clock", Align::Right),
        ("temp", Align::Right),
        ("memory used", Align::Right),
        ("name", Align::Left),
    ]);
    for device in &reading.devices {
        let first = device.power.first();
        let memory = device.memory_used.map(|used| match device.memory_total {
            Some(total) => format!("{} of {}", units::bytes(used), units::bytes(total)),
            None => units::bytes(used),
        });
        table.row([
            device.id.clone(),
            or_dash(device.watts().map(|watts| format!("{} W", units::si(watts)))),
            or_dash(first.map(|power| format!("{}, {}", power.kind, power.boundary))),
            or_dash(first.and_then(|power| power.joules).map(units::joules)),
            or_dash(device.utilisation.map(percent)),
            or_dash(device.clock_mhz.map(|clocks| mhz(clocks.mean))),
            or_dash(device.temperature_c.map(|celsius| degrees(celsius, look))),
            or_dash(memory),
            device.name.clone(),
        ]);
        for power in device.power.iter().skip(1) {
            let mut cells: [String; 9] = Default::default();
            cells[1] = or_dash(power.watts.map(|watts| format!("{} W", units::si(watts))));
            cells[2] = format!("{}, {}", power.kind, power.boundary);
            cells[3] = or_dash(power.joules.map(units::joules));
            cells[8] = power.meter.clone();
            table.row(cells);
        }
    }
    let style = if look.colour && std::io::stdout().is_terminal() { Style::Colour } else { Style::Plain };
    let mut text = table.render(style);
    let seconds = units::si(reading.seconds);
    text.push_str(&format!(
        " power: the mean over {seconds} s, energy: up to the meter's last reading in these; - is unknown\n"
    ));
    if missing > 0 {
        let s = if missing == 1 { "" } else { "s" };
        text.push_str(&format!(
            " {missing} source{s} cannot be read: in a terminal, the key m of `perjoule top` says why\n"
        ));
    }
    text
}

/// A line of `--csv`: the first meter of a device, and what the device says.
#[derive(Debug, Serialize)]
struct Row<'a> {
    time: Option<&'a str>,
    seconds: f64,
    device: &'a str,
    name: &'a str,
    watts: Option<f64>,
    joules: Option<f64>,
    energy_kind: Option<&'a str>,
    energy_source: Option<&'a str>,
    energy_boundary: Option<&'a str>,
    age_s: Option<f64>,
    utilisation: Option<f64>,
    clock_mhz: Option<f64>,
    temperature_c: Option<f64>,
    memory_used: Option<u64>,
    memory_total: Option<u64>,
    throttled: Option<f64>,
}

fn csv(reading: &Reading, header: bool) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().has_headers(header).from_writer(Vec::new());
    for device in &reading.devices {
        writer.serialize(row(reading, device))?;
    }
    let bytes = writer.into_inner().map_err(|error| anyhow::anyhow!("{}", error.error()))?;
    Ok(String::from_utf8(bytes)?)
}

fn row<'a>(reading: &'a Reading, device: &'a DeviceReading) -> Row<'a> {
    let power = device.power.first();
    Row {
        time: reading.time.as_deref(),
        seconds: reading.seconds,
        device: &device.id,
        name: &device.name,
        watts: device.watts(),
        joules: power.and_then(|power| power.joules),
        energy_kind: power.map(|power| power.kind),
        energy_source: power.map(|power| power.source),
        energy_boundary: power.map(|power| power.boundary),
        age_s: power.and_then(|power| power.age_s),
        utilisation: device.utilisation,
        clock_mhz: device.clock_mhz.map(|clocks| clocks.mean),
        temperature_c: device.temperature_c,
        memory_used: device.memory_used,
        memory_total: device.memory_total,
        throttled: device.throttled,
    }
}

/// The terminal in its alternate screen; given back however this ends. A panic gives it back too, by ratatui's hook.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn enter() -> Result<Self> {
        // half of the way in is undone
        let undo = |_: &std::io::Error| ratatui::restore();
        ratatui::try_init().map(Screen).inspect_err(undo).context("cannot draw on this terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The live view. A thread reads, so that a driver that hangs does not keep keys from working.
fn watch(args: &TopArgs, sampler: Sampler, mut state: State) -> Result<Ended> {
    let (intervals, wanted) = mpsc::channel();
    let (readings, arrived) = mpsc::sync_channel(4);
    let (first, interval) = (args.interval.min(Duration::from_millis(250)), args.interval);
    std::thread::Builder::new()
        .name("sampler".into())
        .spawn(move || sample(sampler, first, interval, &wanted, &|reading| readings.send(reading).is_ok()))
        .context("cannot start the thread that reads")?;
    let mut screen = Screen::enter()?;
    let mut shown = 0;
    loop {
        screen.0.draw(|frame| view::draw(frame, &state)).context("cannot draw on this terminal")?;
        let ended = loop {
            if interrupted() {
                break Some(Ended::Interrupted);
            }
            match arrived.try_recv() {
                Ok(reading) => {
                    shown += 1;
                    if !state.paused {
                        state.push(reading);
                    }
                    break args.count.filter(|count| shown >= *count).map(|_| Ended::Done);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => anyhow::bail!("the thread that reads has ended"),
            }
            if event::poll(GLANCE)? {
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        if is_suspend(&key) {
                            drop(screen);
                            crate::signals::suspend();
                            screen = Screen::enter()?;
                        } else if pressed(&key, &mut state, &intervals) {
                            break Some(Ended::Done);
                        }
                        break None;
                    }
                    Event::Resize(..) => break None,
                    _ => {}
                }
            }
        };
        if let Some(ended) = ended {
            return Ok(ended);
        }
    }
}

/// Reads until nobody listens. The first reading comes early, so that the view is not empty for long.
fn sample(
    mut sampler: Sampler,
    first: Duration,
    mut interval: Duration,
    wanted: &Receiver<Duration>,
    send: &dyn Fn(Reading) -> bool,
) {
    let mut last = Instant::now();
    let mut end = last + first;
    loop {
        let now = Instant::now();
        if now >= end {
            if !send(sampler.reading()) {
                return;
            }
            // a reading that took long is not made up for by a burst
            last = Instant::now().max(end);
            end = last + interval;
            continue;
        }
        let due = sampler.due().unwrap_or(end).max(now + Duration::from_millis(1));
        match wanted.recv_timeout(due.min(end).duration_since(now)) {
            Ok(new) => (interval, end) = (new, last + new),
            Err(RecvTimeoutError::Timeout) => sampler.poll(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn is_suspend(key: &KeyEvent) -> bool {
    cfg!(unix) && key.code == KeyCode::Char('z') && key.modifiers.contains(KeyModifiers::CONTROL)
}

/// Does what a key asks for; `true` when it asks for the end.
fn pressed(key: &KeyEvent, state: &mut State, intervals: &Sender<Duration>) -> bool {
    let over = |state: &mut State, overlay: Overlay| {
        state.overlay = if state.overlay == overlay { Overlay::None } else { overlay };
        state.scroll = 0;
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('q') => return true,
        // out of what lies over the panels first
        KeyCode::Esc if state.overlay == Overlay::None => return true,
        KeyCode::Esc => over(state, state.overlay),
        KeyCode::Char('p' | ' ') => state.paused = !state.paused,
        KeyCode::Char('s') => state.sort = state.sort.next(),
        KeyCode::Char('h' | '?') => over(state, Overlay::Help),
        KeyCode::Char('m') => over(state, Overlay::Missing),
        KeyCode::Down | KeyCode::Char('j') => {
            state.scroll = state.scroll.saturating_add(1).min(state.lines())
        }
        KeyCode::Up | KeyCode::Char('k') => state.scroll = state.scroll.saturating_sub(1),
        KeyCode::Char(key @ ('+' | '=' | '-' | '_')) => {
            let now = state.interval.as_millis() as u64;
            let mut steps = INTERVALS.into_iter();
            let next = match key {
                '+' | '=' => steps.rev().find(|step| *step < now),
                _ => steps.find(|step| *step > now),
            };
            if let Some(next) = next {
                state.interval = Duration::from_millis(next);
                // a thread that has ended is noticed elsewhere
                intervals.send(state.interval).ok();
            }
        }
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_units() {
        for (text, ms) in
            [("1", 1000), ("1s", 1000), ("0.5", 500), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(interval(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "0", "1ms", "-1s", "nan", "inf", "1e99", "2h", "5x", "1 s x", "0x10"] {
            assert!(interval(text).unwrap_err().contains("500ms"), "{text}");
        }
    }

    #[test]
    fn keys_do_what_help_says() {
        let (intervals, told) = mpsc::channel();
        let look = Look { colour: false, unicode: true };
        let mut state = State::new(look, Duration::from_secs(1), vec![]);
        let press =
            |state: &mut State, code| pressed(&KeyEvent::new(code, KeyModifiers::NONE), state, &intervals);
        assert!(!press(&mut state, KeyCode::Char('+')));
        assert_eq!(
            (state.interval, told.try_recv()),
            (Duration::from_millis(500), Ok(Duration::from_millis(500)))
        );
        for _ in 0..20 {
            press(&mut state, KeyCode::Char('-'));
        }
        assert_eq!(state.interval, Duration::from_secs(60));
        press(&mut state, KeyCode::Char('p'));
        press(&mut state, KeyCode::Char('m'));
        assert!(state.paused && state.overlay == Overlay::Missing);
        assert!(!press(&mut state, KeyCode::Esc), "Esc leaves the list first");
        assert_eq!(state.overlay, Overlay::None);
        assert!(press(&mut state, KeyCode::Esc) && press(&mut state, KeyCode::Char('q')));
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert!(pressed(&control('c'), &mut state, &intervals) && is_suspend(&control('z')));
    }
}
