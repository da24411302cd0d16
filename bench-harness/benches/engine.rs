//! Holds `perjoule run` against a bare loop and against criterion on the same calls, in turn.
//!
//! `cargo bench -p perjoule-bench --bench engine` prints, for calls of a microsecond to tens of milliseconds, the median of each and the ratios to the
//! bare loop, over several rounds, and how far the rounds of each lie apart: a machine that others use shows in that. One thread, so that it
//! is the methods that are compared and not how a team of threads fares.

use criterion::Criterion;
use perjoule::{Arg, Buffer, DType, Device, Prepared, Stream};
use perjoule_kernels::Op;
use perjoule_kernels::op::MatMul;
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// Time of one method in one round.
const TIME: Duration = Duration::from_secs(2);

/// Sizes as `--shape` takes them, and as a product.
const SHAPES: &[(&str, [usize; 3])] = &[
    ("m=1,n=32,k=32", [1, 32, 32]),
    ("m=16,n=64,k=64", [16, 64, 64]),
    ("m=64,n=256,k=256", [64, 256, 256]),
    ("m=256,n=1024,k=1024", [256, 1024, 1024]),
    ("m=1024,n=1024,k=1024", [1024, 1024, 1024]),
];

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What is launched again and again.
struct Call {
    prepared: Prepared,
    stream: Box<dyn Stream>,
    operands: Vec<Buffer>,
}

impl Call {
    /// The kernel that `perjoule run` chooses.
    fn new(device: &Device, [m, n, k]: [usize; 3]) -> Fallible<Self> {
        let op = Op::from(MatMul::linear(m, n, k, DType::F32, DType::F32, DType::F32));
        let choice = device.select(&op, &[])?;
        let prepared = device.prepare_choice(&op, choice)?;
        let mut stream = device.stream()?;
        let mut operands = Vec::new();
        for (i, operand) in prepared.operands().iter().enumerate() {
            let buffer = device.alloc(operand.bytes)?;
            // small numbers of either sign, whatever the layout: products of zeros, or of subnormals, would take another time
            let numbers =
                (0..operand.bytes / 4).flat_map(|j| (((i as u64 + j) % 7) as f32 - 3.0).to_le_bytes());
            stream.write(&buffer, &numbers.collect::<Vec<u8>>())?;
            operands.push(buffer);
        }
        stream.reserve(prepared.scratch())?;
        Ok(Call { prepared, stream, operands })
    }

    fn repeat(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            let mut args: [Arg<'_>; 3] = std::array::from_fn(|i| Arg::Buf(&self.operands[i]));
            if let Err(error) = self.prepared.launch(&mut *self.stream, &mut args) {
                panic!("{error}");
            }
        }
        if let Err(error) = self.stream.sync().wait() {
            panic!("{error}");
        }
        start.elapsed()
    }

    /// Median nanoseconds of a call: a loop, and a look at the clock each millisecond.
    fn bare(&mut self) -> f64 {
        let mut count = 1;
        while self.repeat(count) < Duration::from_millis(1) {
            count *= 2;
        }
        let (start, mut took) = (Instant::now(), Vec::new());
        while start.elapsed() < TIME {
            took.push(self.repeat(count).as_nanos() as f64 / count as f64);
        }
        median(took)
    }

    /// The median that criterion estimates.
    fn criterion(&mut self, name: &str) -> Fallible<f64> {
        let folder = std::env::temp_dir().join(format!("perjoule-engine-{}", std::process::id()));
        let mut criterion = Criterion::default()
            .without_plots()
            .output_directory(&folder)
            .warm_up_time(TIME / 4)
            .measurement_time(TIME);
        criterion.bench_function(name, |bencher| bencher.iter_custom(|count| self.repeat(count)));
        let path = folder.join(name.replace([',', '='], "_")).join("new/estimates.json");
        let path = if path.exists() { path } else { folder.join(name).join("new/estimates.json") };
        let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let _ = std::fs::remove_dir_all(&folder);
        estimates["median"]["point_estimate"].as_f64().ok_or_else(|| "no estimate".into())
    }
}

/// The median that `perjoule run` reports.
fn engine(shape: &str) -> Fallible<f64> {
    let time = TIME.as_secs().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_perjoule"))
        .args([
            "run",
            "--op",
            "matmul",
            "--shape",
            shape,
            "--dtype",
            "f32",
            "--cache",
            "hot",
            "--threads",
            "1",
        ])
        .args(["--budget", &time, "--format", "json", "-o", "/dev/null", "--quiet"])
        .output()?;
    let records: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    records[0]["median_ns"].as_f64().ok_or_else(|| String::from_utf8_lossy(&output.stderr).into())
}

fn median(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

fn main() -> Fallible<()> {
    let device = perjoule::open_with_threads("cpu", Some(1))?;
    let mut lines = vec![format!(
        "{:<24} {:>12} {:>22} {:>22} {:>34}",
        "matmul f32, hot, 1 thread",
        "bare, ns",
        "criterion / bare",
        "perjoule / bare",
        "spread of rounds: bare, criterion, perjoule"
    )];
    for (shape, sizes) in SHAPES {
        let mut found = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let mut call = Call::new(&device, *sizes)?;
            found[0].push(call.bare());
            found[1].push(call.criterion(shape)?);
            drop(call);
            found[2].push(engine(shape)?);
        }
        let spread = |list: &Vec<f64>| {
            let (low, high) = list.iter().fold((f64::MAX, 0.0f64), |(l, h), x| (l.min(*x), h.max(*x)));
            format!("{:.1} %", 100.0 * (high / low - 1.0))
        };
        let ratio = |i: usize| median(found[i].iter().zip(&found[0]).map(|(x, bare)| x / bare).collect());
        lines.push(format!(
            "{shape:<24} {:>12.0} {:>22.4} {:>22.4} {:>34}",
            median(found[0].clone()),
            ratio(1),
            ratio(2),
            found.iter().map(spread).collect::<Vec<_>>().join(", ")
        ));
    }
    println!("\n{}", lines.join("\n"));
    Ok(())
}
