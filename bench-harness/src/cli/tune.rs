//! `perjoule tune`: measures which kernel is fastest for each shape, and keeps it for later commands.

use anyhow::{Result, bail, ensure};
use clap::Args;
use perjoule::{Choice, DType, Device, Op, tuning};
use perjoule_kernels::tune::Tuning;
use perjoule_kernels::{Alignment, Query};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::run::{DEFAULTS, fits};
use super::{Ended, open, progress, tune_model};
use crate::measure::tune::{Contest, Timed, contest};
use crate::measure::{Interrupted, interrupted};
use crate::ops;
use crate::report::{Align, Style, Table, units};

pub(super) const EXAMPLES: &str = "Examples:
  perjoule tune                                         the shapes of the default run, about 90 s
  perjoule tune --op matmul --shape m=1,n=4096,k=4096 --dtype bf16
  perjoule tune --model llama-3.2-1b                    what its prompts and its decoding need
  perjoule kernels --op matmul --shape m=1,n=4096,k=4096 --dtype bf16   shows measured times
  perjoule tune --clear                                 forget all of it

Times lie in the cache folder (perjoule/tuning), for this device, its features, the number of threads and this build of the
kernels alone: after an update, tune again. PERJOULE_TUNING=FILE names another file, PERJOULE_TUNING=off ignores it.";

/// Seconds of sampling by default; checks come on top.
const BUDGET: f64 = 60.0;

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// Device to tune
    #[arg(long, value_name = "ID", default_value = "cpu")]
    pub(crate) device: String,
    /// Only this op [default: the kernels of `perjoule run`]
    #[arg(long, conflicts_with = "model")]
    pub(crate) op: Option<String>,
    /// Sizes of the op, such as m=1,n=4096,k=4096; shapes of one bucket (sizes rounded up to powers of two) share a measurement
    #[arg(long, value_name = "NAME=N,..", conflicts_with = "model", requires = "op")]
    pub(crate) shape: Option<String>,
    /// Element types [default: f32,bf16; of a model that of its weights]
    #[arg(long, value_name = "TYPE,..", value_delimiter = ',')]
    pub(crate) dtype: Vec<DType>,
    /// The ops of a model's prompt and decoding: folder of a model, a GGUF file, or the name of a geometry
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: Option<String>,
    /// Element type of the model's KV cache [default: that of the weights, f16 beside block formats]
    #[arg(long, value_name = "TYPE", requires = "model")]
    pub(crate) kv_dtype: Option<DType>,
    /// Seconds of sampling in all; checking results comes on top [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = super::args::budget, allow_negative_numbers = true)]
    pub(crate) budget: Option<f64>,
    /// CPU threads: each number has a table of its own
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Measure the kernels of vendors' libraries, too: shown, never chosen
    #[arg(long)]
    pub(crate) vendor: bool,
    /// Forget what was measured on this device with so many threads
    #[arg(long, conflicts_with_all = ["op", "shape", "dtype", "kv_dtype", "model", "budget", "vendor"])]
    pub(crate) clear: bool,
    /// Print a JSON object with every kernel's time
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// An op, what its callers vouch for, and how it is called.
struct Wanted {
    op: Op,
    alignment: Alignment,
    name: String,
}

/// A bucket that was measured.
struct Done {
    name: String,
    key: String,
    contest: Contest,
}

pub(crate) fn run(args: &TuneArgs) -> Result<Ended> {
    let budget = args.budget.unwrap_or(BUDGET);
    ensure!(args.threads != Some(0), "--threads 0: at least one thread is needed");
    let device = match args.clear {
        true => super::open_untuned(&args.device, args.threads)?,
        false => open(&args.device, args.threads)?,
    };
    if args.clear {
        return clear(args, &device);
    }
    // an hour of measuring for nothing would be worse than no start
    ensure!(
        tuning::path(device.info())?.is_some(),
        "{} is off, so that there is nowhere to write; unset it",
        tuning::VARIABLE
    );
    let wanted = wanted(args, &device)?;
    let bar = progress::bar(wanted.len() as u64, args.quiet);
    let begin = Instant::now();
    let (mut done, mut path) = (Vec::new(), None);
    let mut result = Ok(());
    for (index, item) in wanted.iter().enumerate() {
        bar.set_message(item.name.clone());
        let rest = (budget - begin.elapsed().as_secs_f64()) / (wanted.len() - index) as f64;
        let time = Duration::from_secs_f64(rest.max(0.05));
        result = measure(&device, item, args.vendor, time).and_then(|bucket| {
            let mut tuning = Tuning::new();
            for Timed { choice, seconds, .. } in &bucket.contest.timed {
                tuning.insert(&item.op, choice, *seconds as f32);
            }
            done.push(bucket);
            // each at once: an end by Ctrl-C keeps what is finished
            path = Some(tuning::save(&device, tuning)?);
            Ok(())
        });
        bar.inc(1);
        if result.is_err() {
            break;
        }
    }
    bar.finish_and_clear();
    if !done.is_empty() || result.is_ok() {
        show(args, &device, &done, path.as_deref())?;
    }
    if interrupted() || result.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
        return Ok(Ended::Interrupted);
    }
    result?;
    let wrong = done.iter().any(|bucket| !bucket.contest.wrong.is_empty());
    Ok(if wrong { Ended::Failed } else { Ended::Done })
}

fn clear(args: &TuneArgs, device: &Device) -> Result<Ended> {
    let files = tuning::clear(device)?;
    let mut out = anstream::stdout();
    if args.json {
        writeln!(out, "{}", json!({ "removed": files }))?;
    } else if files.is_empty() {
        writeln!(out, "nothing to forget: {} was not tuned with these threads", args.device)?;
    }
    for file in files.iter().filter(|_| !args.json) {
        writeln!(out, "removed {}", file.display())?;
    }
    Ok(Ended::Done)
}

/// What to measure, each bucket once.
fn wanted(args: &TuneArgs, device: &Device) -> Result<Vec<Wanted>> {
    let fresh = Alignment::uniform(device.info().arena.align);
    let mut list = Vec::new();
    if let Some(model) = &args.model {
        let dtypes = args.dtype.iter().copied().map(Some);
        for dtype in dtypes.chain(args.dtype.is_empty().then_some(None)) {
            let spinner = progress::bar(0, args.quiet);
            spinner.set_message(format!("looking at what {model} needs"));
            let ops = tune_model::ops(&args.device, args.threads, model, dtype, args.kv_dtype);
            spinner.finish_and_clear();
            list.extend(ops?.into_iter().map(|(op, alignment)| Wanted {
                name: op.to_string(),
                op,
                alignment,
            }));
        }
    } else {
        let dtypes = if args.dtype.is_empty() { &[DType::F32, DType::BF16][..] } else { &args.dtype };
        let shape = args.shape.as_deref().unwrap_or("");
        let one = args.op.as_deref().map(|op| [(op, shape)]);
        for &(op, shape) in one.as_ref().map_or(DEFAULTS, |one| one.as_slice()) {
            let entry = ops::find(op)?;
            let sizes = entry.sizes(shape)?;
            sizes.refuse_empty()?;
            for &dtype in dtypes {
                let op = entry.build(&sizes, dtype, &**device.backend())?;
                list.push(Wanted { name: format!("{} {dtype} {sizes}", entry.name), op, alignment: fresh });
            }
        }
    }
    let mut keys = Vec::new();
    list.retain(|wanted| {
        let key = wanted.op.tuning_key();
        let new = !keys.contains(&key);
        keys.extend(new.then_some(key));
        new
    });
    list.iter().try_for_each(|wanted| fits(&wanted.op))?;
    if list.is_empty() {
        bail!("there is nothing to measure");
    }
    Ok(list)
}

fn measure(device: &Device, wanted: &Wanted, vendor: bool, time: Duration) -> Result<Done> {
    let query = Query { op: &wanted.op, alignment: wanted.alignment };
    let contest = contest(device, query, vendor, time, 1)?;
    Ok(Done { name: wanted.name.clone(), key: wanted.op.tuning_key(), contest })
}

fn same(a: &Choice, b: &Choice) -> bool {
    std::ptr::eq(a.kernel, b.kernel) && a.config == b.config && a.pack == b.pack
}

fn show(args: &TuneArgs, device: &Device, done: &[Done], path: Option<&Path>) -> Result<()> {
    let mut out = anstream::stdout();
    if args.json {
        let object = json!({
            "device": args.device,
            "device_name": device.info().name,
            "threads": device.info().threads,
            "build": device.info().build,
            "file": path,
            "buckets": done.iter().map(as_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&object)?)?;
        return Ok(());
    }
    let mut table = Table::new([
        ("op", Align::Left),
        ("fastest kernel, config, pack", Align::Left),
        ("time", Align::Right),
        ("of", Align::Right),
        ("than the predicted one", Align::Left),
        ("fastest of vendors", Align::Left),
    ]);
    for bucket in done {
        let timed = &bucket.contest.timed;
        let own = || timed.iter().filter(|t| !t.choice.kernel.vendor);
        let Some(best) = own().next() else {
            table.row([bucket.name.clone(), "none".into(), "-".into(), "0".into()]);
            continue;
        };
        let before = bucket.contest.predicted.and_then(|p| own().find(|t| same(&t.choice, &p)));
        let gain = match before {
            Some(before) if same(&before.choice, &best.choice) => "the same".into(),
            Some(before) => {
                format!("{:.2} x as fast ({})", before.seconds / best.seconds, named(&before.choice))
            }
            None => String::new(),
        };
        let vendor = timed.iter().find(|t| t.choice.kernel.vendor);
        let vendor = vendor.map_or(String::new(), |v| {
            format!("{} {}", units::duration_ns(v.seconds * 1e9), v.choice.kernel.name)
        });
        let time = units::duration_ns(best.seconds * 1e9);
        table.row([bucket.name.clone(), named(&best.choice), time, own().count().to_string(), gain, vendor]);
    }
    write!(out, "{}", table.render(Style::Plain))?;
    for bucket in done {
        for (choice, why) in &bucket.contest.wrong {
            writeln!(out, "\nWRONG {} on {}: {why}", named(choice), bucket.name)?;
        }
    }
    let left: Vec<&Choice> = done.iter().flat_map(|bucket| &bucket.contest.left).collect();
    if let Some(first) = left.first() {
        let count = left.len();
        writeln!(out, "\nnot measured: {count} that predict to be far too slow, such as {}", named(first))?;
    }
    if let Some(path) = path {
        writeln!(out, "\nkept in {}", path.display())?;
    }
    Ok(())
}

fn named(choice: &Choice) -> String {
    let pack = choice.pack.map_or(String::new(), |pack| format!(", {}", pack.name));
    format!("{}, {}{pack}", choice.kernel.name, choice.config().name)
}

fn as_json(bucket: &Done) -> Value {
    let choice = |choice: &Choice| {
        json!({
            "kernel": choice.kernel.name,
            "config": choice.config().name,
            "pack": choice.pack.map(|pack| pack.name),
            "vendor": choice.kernel.vendor,
        })
    };
    let timed = |timed: &Timed| {
        let mut value = choice(&timed.choice);
        value["seconds"] = timed.seconds.into();
        value["samples"] = timed.samples.into();
        value["predicted"] = bucket.contest.predicted.is_some_and(|p| same(&p, &timed.choice)).into();
        value
    };
    let wrong = |(wrong, why): &(Choice, String)| {
        let mut value = choice(wrong);
        value["why"] = why.as_str().into();
        value
    };
    json!({
        "op": bucket.name,
        "key": bucket.key,
        "kernels": bucket.contest.timed.iter().map(timed).collect::<Vec<_>>(),
        "wrong": bucket.contest.wrong.iter().map(wrong).collect::<Vec<_>>(),
        "not_measured": bucket.contest.left.iter().map(choice).collect::<Vec<_>>(),
    })
}
