//! A meter outside the machine, such as one at the wall socket or a PDU, through lines of text on standard input, a
//! FIFO or a Unix socket. The protocol is in `PROTOCOL.md` beside this crate's README.
//!
//! A thread reads the lines; a reading of the meter is the newest of them. What is wrong shows in the energy: lines
//! that cannot be read are counted in a note, a meter of power that falls silent or whose sender is gone makes the
//! window an error, and so does a meter of energy that starts over.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{MeterError, Result};
use crate::feed::{Feed, Line, each_line};
use crate::meter::{Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Band, Boundary, Source};

/// Longest line, bytes.
const LINE_LIMIT: usize = 4096;

/// Share of time by which a sender's clock may be slow: one that loses time makes its lines look ever older.
const DRIFT: f64 = 0.02;

/// A meter is silent when no line came for this many of its periods.
const SILENT_PERIODS: u32 = 3;

/// Where an external meter's lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExternalSource {
    /// Standard input of this process.
    Stdin,
    /// A FIFO, a Unix socket (which is connected to), or a character device such as a serial port.
    Path(PathBuf),
}

impl std::fmt::Display for ExternalSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExternalSource::Stdin => f.write_str("standard input"),
            ExternalSource::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A meter outside the machine.
#[derive(Debug)]
pub struct External {
    info: MeterInfo,
    stream: Arc<Stream>,
}

/// What the reading thread and the meter share.
#[derive(Debug)]
struct Stream {
    /// Set when the first reading comes, or when the header cannot be understood.
    header: OnceLock<std::result::Result<Header, String>>,
    feed: Feed<Sample>,
}

impl External {
    /// Opens the stream and waits up to `patience` for the header and the first reading.
    ///
    /// # Errors
    /// [`MeterError::Absent`] when nothing comes in time or the stream cannot be opened,
    /// [`MeterError::Malformed`] for a header that is not understood.
    pub fn open(source: &ExternalSource, patience: Duration) -> Result<External> {
        match source {
            ExternalSource::Stdin => External::start("stdin".into(), patience, || Ok(io::stdin())),
            ExternalSource::Path(path) => {
                let opened = path.clone();
                // Opening a FIFO blocks until there is a writer, so it happens on the thread.
                External::start(path.display().to_string(), patience, move || open_path(&opened))
            }
        }
    }

    /// As [`External::open`], for any stream of bytes. `place` names it in messages and in the meter's id.
    ///
    /// # Errors
    /// As [`External::open`].
    pub fn from_reader(
        place: impl Into<String>,
        reader: impl Read + Send + 'static,
        patience: Duration,
    ) -> Result<External> {
        External::start(place.into(), patience, move || Ok(reader))
    }

    fn start<R: Read>(
        place: String,
        patience: Duration,
        open: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> Result<External> {
        let absent = |reason: String| MeterError::Absent {
            origin: Source::External,
            reason: format!("{place}: {reason}"),
        };
        let stream = Arc::new(Stream { header: OnceLock::new(), feed: Feed::new() });
        // The thread may be stuck in a read when the meter is dropped; it ends with the next line or the stream.
        let shared = Arc::downgrade(&stream);
        thread::Builder::new()
            .name("external-meter".into())
            .spawn(move || {
                let reason = match open().and_then(|reader| receive(reader, &shared)) {
                    Ok(()) => "the sender closed the stream".to_owned(),
                    Err(e) => format!("the stream failed: {e}"),
                };
                if let Some(stream) = shared.upgrade() {
                    stream.feed.end(reason);
                }
            })
            .map_err(|e| absent(format!("cannot start the reading thread: {e}")))?;

        let (first, ended) = {
            let state = stream.feed.wait(patience);
            (state.latest, state.ended.clone())
        };
        match (stream.header.get(), first) {
            (Some(Ok(header)), Some((_, first))) => {
                let info = describe(&place, header, first);
                Ok(External { info, stream })
            }
            (Some(Err(line)), _) => Err(MeterError::Malformed {
                path: place.into(),
                found: line.clone(),
                expected: "the header lines of PROTOCOL.md, the boundary among them",
            }),
            _ => Err(absent(ended.unwrap_or_else(|| {
                let seconds = patience.as_secs_f64();
                format!("no reading came within {seconds:.1} s, is its sender running?")
            }))),
        }
    }
}

impl Meter for External {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let lost = |reason| MeterError::Lost { meter: self.info.id.clone(), reason };
        let state = self.stream.feed.lock();
        if let Some(reason) = &state.ended {
            return Err(lost(format!("{reason}, start it again")));
        }
        let Some((at, sample)) = state.latest else { return Err(lost("nothing came yet".into())) };
        let age = at.elapsed();
        if age <= SILENT_PERIODS * self.info.update_period {
            return Ok(sample);
        }
        let reason = format!("no line came for {:.1} s", age.as_secs_f64());
        Err(match sample {
            // What flowed meanwhile is unknown.
            Sample::Watts(_) => lost(reason),
            // A counter goes on by itself: the next line makes up for it.
            Sample::Joules(_) => {
                let reason = format!("{}: {reason}", self.info.id);
                MeterError::Library { origin: Source::External, reason }
            }
        })
    }

    fn faults(&self) -> u64 {
        self.stream.feed.lock().faults
    }
}

fn describe(place: &str, header: &Header, first: Sample) -> MeterInfo {
    let boundary = header.boundary;
    let subject = match boundary {
        Boundary::Core | Boundary::Uncore | Boundary::Package => Subject::Cpu,
        Boundary::Dram => Subject::Memory,
        Boundary::Chip | Boundary::Board => Subject::Gpu,
        Boundary::Rail => Subject::Other,
        Boundary::Module | Boundary::Platform | Boundary::Battery | Boundary::Wall => Subject::System,
    };
    let mut info = MeterInfo::new(format!("external:{place}"), Source::External, boundary, subject);
    info.name = header.name.clone().unwrap_or_else(|| place.to_owned());
    info.device = header.device.clone();
    info.update_period = header.period;
    // Often enough to see each line: power is integrated, and a counter that starts over must not be missed.
    info.poll_every = Some(header.period / 2);
    match header.accuracy {
        Some(fraction) => info.accuracy = Band::within(fraction),
        None => info.notes.push("The meter does not state its accuracy: 10 % is assumed.".into()),
    }
    if matches!(first, Sample::Watts(_)) {
        info.notes.push("Integrated from sampled power.".into());
    }
    info
}

fn open_path(path: &Path) -> io::Result<Box<dyn Read>> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        use std::os::unix::net::UnixStream;
        if std::fs::metadata(path)?.file_type().is_socket() {
            return Ok(Box::new(UnixStream::connect(path)?));
        }
    }
    Ok(Box::new(File::open(path)?))
}

/// Reads lines until the stream ends, the header is refused, or the meter is gone.
fn receive(reader: impl Read, shared: &Weak<Stream>) -> io::Result<()> {
    let mut protocol = Protocol::default();
    let mut refused = None;
    each_line(reader, LINE_LIMIT, |line| {
        let arrived = Instant::now();
        let Some(stream) = shared.upgrade() else { return false };
        let parsed = match line {
            Line::Text(text) => protocol.line(text, arrived),
            Line::Garbage => Err(Refusal::Line),
        };
        match parsed {
            Ok(None) => {}
            Ok(Some((at, sample))) => {
                // A stream without a boundary is refused at its first reading.
                let header = stream.header.get_or_init(|| protocol.header().map_err(str::to_owned));
                if let Err(line) = header {
                    refused = Some(line.clone());
                    return false;
                }
                stream.feed.put(at, sample);
            }
            Err(Refusal::Line) => stream.feed.fault(),
            Err(Refusal::Header(line)) => {
                let _ = stream.header.set(Err(line.clone()));
                refused = Some(line);
                return false;
            }
        }
        true
    })?;
    match refused {
        Some(line) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("its header is refused: {line}")))
        }
        None => Ok(()),
    }
}

/// What a meter declares before its first reading.
#[derive(Clone, Debug, PartialEq)]
struct Header {
    name: Option<String>,
    boundary: Boundary,
    device: Option<String>,
    /// As a fraction.
    accuracy: Option<f64>,
    period: Duration,
}

/// Why a line is not taken.
#[derive(Debug, PartialEq)]
enum Refusal {
    /// It is counted and skipped.
    Line,
    /// The stream cannot be used.
    Header(String),
}

/// How the sender's clock relates to ours.
#[derive(Debug)]
struct Clock {
    /// When the first timestamp came; delays count from there.
    first: Instant,
    /// The last timestamp, s, and when it came, s since `first`.
    stamp: f64,
    arrived: f64,
    /// The smallest delay between a timestamp and its arrival that was seen, s, raised by [`DRIFT`].
    least: f64,
}

/// The protocol's state from line to line.
#[derive(Debug, Default)]
struct Protocol {
    name: Option<String>,
    boundary: Option<Boundary>,
    device: Option<String>,
    accuracy: Option<f64>,
    period: Option<Duration>,
    /// Whether the first reading counted energy; later ones must do the same.
    counts: Option<bool>,
    clock: Option<Clock>,
}

impl Protocol {
    /// Takes one line: a reading with the time that it stands for, or nothing to report.
    fn line(
        &mut self,
        line: &str,
        arrived: Instant,
    ) -> std::result::Result<Option<(Instant, Sample)>, Refusal> {
        if line.is_empty() {
            return Ok(None);
        }
        if let Some(text) = line.strip_prefix('#') {
            // What follows the first reading is commentary.
            return match self.counts {
                None => self.declare(text.trim()).map(|()| None),
                Some(_) => Ok(None),
            };
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(letter), Some(value), stamp, None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Refusal::Line);
        };
        let number = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite());
        let value = number(value).filter(|value| *value >= 0.0).ok_or(Refusal::Line)?;
        let sample = match letter {
            "W" => Sample::Watts(value),
            "J" => Sample::Joules(value),
            "Wh" => Sample::Joules(value * 3600.0),
            _ => return Err(Refusal::Line),
        };
        let counts = matches!(sample, Sample::Joules(_));
        if self.counts.is_some_and(|known| known != counts) {
            return Err(Refusal::Line);
        }
        let at = match stamp {
            None => arrived,
            Some(stamp) => self.dated(number(stamp).ok_or(Refusal::Line)?, arrived)?,
        };
        self.counts = Some(counts);
        Ok(Some((at, sample)))
    }

    /// The time of a line by the sender's clock. Its origin is not known, so the line with the shortest delay so
    /// far is taken to have come at once, and others are as old as they came later than that, less what the clock may have lost since.
    fn dated(&mut self, stamp: f64, arrived: Instant) -> std::result::Result<Instant, Refusal> {
        let (first, arrived_s, delay, least) = match &self.clock {
            None => (arrived, 0.0, -stamp, -stamp),
            Some(clock) if stamp <= clock.stamp => return Err(Refusal::Line),
            Some(clock) => {
                let now = arrived.saturating_duration_since(clock.first).as_secs_f64();
                let delay = now - stamp;
                (clock.first, now, delay, delay.min(clock.least + DRIFT * (now - clock.arrived)))
            }
        };
        self.clock = Some(Clock { first, stamp, arrived: arrived_s, least });
        let late = delay - least;
        let late = Duration::try_from_secs_f64(late.max(0.0)).unwrap_or_default();
        Ok(arrived.checked_sub(late).unwrap_or(arrived))
    }

    /// `key: value`; anything else is a comment.
    fn declare(&mut self, text: &str) -> std::result::Result<(), Refusal> {
        let Some((key, value)) = text.split_once(':') else { return Ok(()) };
        let (key, value) = (key.trim(), value.trim());
        let refused = || Refusal::Header(format!("# {key}: {value}"));
        match key {
            "protocol" if value != "perjoule-meter 1" => return Err(refused()),
            "name" => self.name = Some(value.to_owned()),
            "device" => self.device = Some(value.to_owned()),
            "boundary" => self.boundary = Some(Boundary::from_name(value).ok_or_else(refused)?),
            "accuracy" => {
                let percent = value.strip_suffix('%').and_then(|text| text.trim().parse::<f64>().ok());
                let percent = percent.filter(|percent| *percent > 0.0 && *percent < 100.0);
                self.accuracy = Some(percent.ok_or_else(refused)? / 100.0);
            }
            "period" => {
                let seconds = value.strip_suffix('s').and_then(|text| text.trim().parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| (0.001..=3600.0).contains(seconds));
                self.period = Some(Duration::from_secs_f64(seconds.ok_or_else(refused)?));
            }
            _ => {}
        }
        Ok(())
    }

    fn header(&self) -> std::result::Result<Header, &'static str> {
        Ok(Header {
            name: self.name.clone(),
            boundary: self.boundary.ok_or("a reading before `# boundary: ..`")?,
            device: self.device.clone(),
            accuracy: self.accuracy,
            period: self.period.unwrap_or(Duration::from_secs(1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(protocol: &mut Protocol, text: &str) -> std::result::Result<Option<Sample>, Refusal> {
        protocol.line(text, Instant::now()).map(|reading| reading.map(|(_, sample)| sample))
    }

    #[test]
    fn headers_and_readings_are_understood_and_garbage_is_not() {
        let mut protocol = Protocol::default();
        for text in [
            "# protocol: perjoule-meter 1",
            "# name: Rack 7, outlet 3",
            "# boundary: wall",
            "# accuracy: 1.5 %",
            "# period: 0.5 s",
            "#just a comment",
            "# colour: blue",
            "",
        ] {
            assert_eq!(line(&mut protocol, text), Ok(None), "{text}");
        }
        assert_eq!(line(&mut protocol, "W 123.4"), Ok(Some(Sample::Watts(123.4))));
        assert_eq!(line(&mut protocol, "W 1e2 1732600000.25"), Ok(Some(Sample::Watts(100.0))));
        for text in
            ["W", "W x", "W -1", "W nan", "W inf", "w 1", "W 1 2 3", "V 230", "W 1 yesterday", "J 5", "W 1 7"]
        {
            assert_eq!(line(&mut protocol, text), Err(Refusal::Line), "{text}");
        }
        assert_eq!(line(&mut protocol, "# boundary: nonsense"), Ok(None), "commentary by now");
        let header = protocol.header().expect("complete");
        assert_eq!(header.name.as_deref(), Some("Rack 7, outlet 3"));
        assert_eq!((header.boundary, header.accuracy), (Boundary::Wall, Some(0.015)));
        assert_eq!(header.period, Duration::from_millis(500));
        assert_eq!(line(&mut Protocol::default(), "Wh 2"), Ok(Some(Sample::Joules(7200.0))));
        assert!(Protocol::default().header().is_err());
    }

    #[test]
    fn wrong_headers_are_refused() {
        for text in [
            "# protocol: perjoule-meter 2",
            "# boundary: house",
            "# accuracy: 1",
            "# accuracy: 0 %",
            "# accuracy: 100 %",
            "# period: soon",
            "# period: 0 s",
            "# period: 99999 s",
        ] {
            let refused = line(&mut Protocol::default(), text);
            assert_eq!(refused, Err(Refusal::Header(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_line_that_came_late_is_as_old_as_its_timestamp_says() {
        let mut protocol = Protocol::default();
        let start = Instant::now();
        let mut at = |seconds: f64, stamp: f64| {
            let arrived = start + Duration::from_secs_f64(seconds);
            let (at, _) = protocol.line(&format!("W 1 {stamp}"), arrived).expect("taken").expect("a reading");
            arrived.saturating_duration_since(at).as_secs_f64()
        };
        assert!(at(0.0, 1000.0).abs() < 1e-6);
        assert!(at(1.0, 1001.0).abs() < 1e-6);
        // Three seconds in a buffer, less the drift of four.
        assert!((at(5.0, 1002.0) - 2.92).abs() < 1e-6);
        // A shorter delay than ever: the clock's origin is set anew.
        assert!(at(5.5, 1006.0).abs() < 1e-6);
        assert!((at(7.0, 1007.0) - 0.47).abs() < 1e-6);
    }

    #[test]
    fn a_clock_that_is_slow_or_fast_makes_no_line_old() {
        for rate in [0.99, 1.0, 1.01] {
            let (mut protocol, start) = (Protocol::default(), Instant::now());
            for i in 0..36_000 {
                let seconds = 0.1 * f64::from(i);
                let arrived = start + Duration::from_secs_f64(seconds);
                let line = format!("W 1 {}", 1.7e9 + rate * seconds);
                let (at, _) = protocol.line(&line, arrived).expect("taken").expect("a reading");
                let age = arrived.saturating_duration_since(at).as_secs_f64();
                assert!(age < 1e-3, "{age} s old after {seconds} s at {rate}");
            }
        }
    }
}
