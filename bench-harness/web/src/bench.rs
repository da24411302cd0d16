//! The run: roofs, kernels, tokens; each result verified where it can be, and recorded.

use crate::clock::Browser;
use crate::energy::{Modelled, classes};
use crate::events::{Event, listen, set_stopped, stopped, tell};
use crate::roof::roofs;
use crate::set::{Entry, SET};
use anyhow::{Context, Result, anyhow};
use js_sys::{Date, Function, Math};
use perjoule::{DType, Device};
use perjoule_engine::launches::{Caches, Launches, default_cache, fresh};
use perjoule_engine::roofs::Roofs;
use perjoule_engine::sampling::{Clock, Effort, Subject, drift, measure, spread};
use perjoule_engine::tokens::{Repetition, Test};
use perjoule_engine::{Interrupted, data, ops};
use perjoule_kernels::op::Policy;
use perjoule_model::{LoadOptions, Model, Source, zoo};
use perjoule_record::{DeviceFields, Environment, Kind, Reader, Record, rfc3339, to_line};
use perjoule_webgpu::WebGpuDevice;
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use wasm_bindgen::prelude::*;

/// A browser does not tell how large the device's cache is: larger than that it is taken to be on no device.
const LAST_LEVEL: u64 = 48 << 20;
/// A call that would take so many times what a measurement may take is left out.
const TOO_LONG: f64 = 4.0;
/// The model whose tokens are timed, with random weights.
const MODEL: &str = "smollm2-135m";
/// Its weights' type.
const WEIGHTS: DType = DType::BF16;

/// Layers and vocabulary that a short run cuts it to: a software adapter takes minutes for a token of the whole.
const CUT: (usize, usize) = (2, 2048);

thread_local! {
    static OPENED: RefCell<Option<Opened>> = const { RefCell::new(None) };
}

#[derive(Clone)]
struct Opened {
    device: Device,
    backend: Arc<WebGpuDevice>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// Whether everything works: small shapes, a fraction of a second each.
    Short,
    /// A few minutes.
    Normal,
    /// More of the same.
    Long,
}

/// What the page says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    mode: Mode,
    /// Class of the catalogue that energy is modelled from.
    class: Option<String>,
    /// Whether a model's tokens are timed.
    tokens: bool,
    seed: u64,
    /// The adapter's own name.
    adapter: Option<String>,
    software: Option<bool>,
    /// The browser's name and version.
    browser: Option<String>,
    os: Option<String>,
    os_version: Option<String>,
    cpu_count: Option<u64>,
}

/// Times and sizes of a mode.
struct Plan {
    /// For a kernel.
    kernel: Duration,
    /// For all ceilings.
    roofs: Duration,
    /// Bytes to stream through.
    streamed: u64,
    /// Bytes that operands rotate through.
    rotated: u64,
    /// For a test of the model.
    tokens: Duration,
    n_prompt: usize,
    n_gen: usize,
}

impl Plan {
    fn of(mode: Mode) -> Self {
        let (short, factor) = (mode == Mode::Short, if mode == Mode::Long { 4.0 } else { 1.0 });
        let seconds =
            |brief: f64, full: f64| Duration::from_secs_f64(if short { brief } else { full * factor });
        Plan {
            kernel: seconds(0.25, 1.5),
            roofs: seconds(1.0, 4.0),
            streamed: if short { 32 << 20 } else { 256 << 20 },
            rotated: if short { 64 << 20 } else { 4 * LAST_LEVEL },
            tokens: seconds(1.0, 8.0),
            n_prompt: if short { 4 } else { 128 },
            n_gen: if short { 2 } else { 32 },
        }
    }

    fn effort(time: Duration) -> Effort {
        Effort { time, repetitions: None, bounded: true }
    }
}

fn thrown(error: &anyhow::Error) -> JsError {
    JsError::new(&format!("{error:#}"))
}

async fn opened() -> Result<Opened> {
    if let Some(opened) = OPENED.with_borrow(Clone::clone) {
        return Ok(opened);
    }
    let backend = Arc::new(WebGpuDevice::open_preferred().await?);
    let opened = Opened { device: Device::new(backend.clone())?, backend };
    OPENED.set(Some(opened.clone()));
    Ok(opened)
}

fn description(opened: &Opened) -> Value {
    let info = opened.device.info();
    let limits = &opened.backend.caps().limits;
    json!({
        "name": info.name,
        "driver": info.driver,
        "software": info.software,
        "features": info.features,
        "kernels": opened.device.kernels().len(),
        "limits": {
            "storage buffers a kernel": limits.max_storage_buffers_per_shader_stage,
            "invocations a workgroup": limits.max_compute_invocations_per_workgroup,
            "workgroup memory": limits.max_compute_workgroup_storage_size,
            "largest buffer": limits.max_buffer_size,
            "largest binding": limits.max_storage_buffer_binding_size,
        },
    })
}

/// Classes of hardware that energy can be modelled from, as JSON.
#[wasm_bindgen(js_name = "classes")]
pub fn list_of_classes() -> String {
    json!(classes()).to_string()
}

/// Opens the device, and says what it is, as JSON.
///
/// # Errors
/// Where the browser gives none.
#[wasm_bindgen]
pub async fn look() -> Result<String, JsError> {
    std::panic::set_hook(Box::new(|panic| wasm_bindgen::throw_str(&panic.to_string())));
    let opened = opened().await.map_err(|error| thrown(&error))?;
    Ok(description(&opened).to_string())
}

/// Asks the run to end.
#[wasm_bindgen]
pub fn stop() {
    set_stopped(true);
}

/// Measures what `options` say, as JSON; `listener` is called with each event, as JSON.
///
/// # Errors
/// Where the device is lost. What single measurements run into is an event.
#[wasm_bindgen]
pub async fn run(options: String, listener: Function) -> Result<(), JsError> {
    set_stopped(false);
    listen(listener);
    let ended = async {
        let options: Options = serde_json::from_str(&options).context("options")?;
        let bench = Bench::new(opened().await?, options);
        bench.run().await
    }
    .await;
    match ended {
        Err(error) if !error.is::<Interrupted>() => {
            // a lost device is opened anew the next time
            OPENED.set(None);
            Err(thrown(&error))
        }
        _ => Ok(()),
    }
}

struct Bench {
    opened: Opened,
    options: Options,
    plan: Plan,
    clock: Browser,
    environment: Environment,
    energy: Option<Modelled>,
}

/// A subject that shows its samples, and ends when somebody asks for it.
struct Shown<'s, S> {
    inner: &'s mut S,
    clock: &'s Browser,
    last: Option<f64>,
}

impl<S: Subject> Subject for Shown<'_, S> {
    async fn call(&mut self, count: u64) -> Result<()> {
        let start = self.clock.now();
        self.inner.call(count).await?;
        let took = self.inner.device_time().unwrap_or(self.clock.now() - start);
        self.last = Some(took.as_secs_f64() * 1e3 / count as f64);
        Ok(())
    }

    fn device_time(&self) -> Option<Duration> {
        self.inner.device_time()
    }

    async fn before_sample(&mut self) -> Result<()> {
        // outside of the timing
        if let Some(ms) = self.last.take() {
            tell(&Event::Sample { ms });
        }
        if stopped() {
            return Err(Interrupted.into());
        }
        self.inner.before_sample().await
    }

    fn begin(&mut self) {
        self.inner.begin();
    }

    fn one_call_a_sample(&self) -> bool {
        self.inner.one_call_a_sample()
    }
}

/// Whether a run can go on after that error.
fn is_end(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
        || matches!(error.downcast_ref::<perjoule::Error>(), Some(perjoule::Error::Lost { .. }))
        || matches!(
            error.downcast_ref::<perjoule_model::Error>(),
            Some(
                perjoule_model::Error::Stopped | perjoule_model::Error::Device(perjoule::Error::Lost { .. })
            )
        )
}

impl Bench {
    fn new(opened: Opened, options: Options) -> Self {
        let now = rfc3339((Date::now() / 1e3) as u64).replace([':', '-'], "");
        let environment = Environment {
            run_id: Some(format!("{now}-{:08x}", (Math::random() * 4_294_967_296.0) as u32)),
            command: Some("perjoule web".into()),
            build_commit: option_env!("PERJOULE_BUILD_COMMIT").map(Into::into),
            rustc: option_env!("PERJOULE_RUSTC").map(Into::into),
            os: options.os.clone(),
            os_version: options.os_version.clone(),
            cpu_count: options.cpu_count,
            ..Environment::of_build()
        };
        let energy = options.class.as_deref().and_then(Modelled::find);
        Bench { plan: Plan::of(options.mode), clock: Browser::new(), opened, options, environment, energy }
    }

    /// A record of this device, made now.
    fn record(&self, kind: Kind) -> Record {
        let mut record = Record::new(kind, &self.environment);
        let info = self.opened.device.info();
        record.test_time = Some(rfc3339((Date::now() / 1e3) as u64));
        let driver = [info.driver.clone(), self.options.browser.clone()];
        record.device = DeviceFields {
            device: Some(info.label.clone()),
            backend: Some(info.backend.into()),
            device_name: Some(self.options.adapter.clone().unwrap_or_else(|| info.name.clone())),
            device_software: Some(self.options.software.unwrap_or(info.software)),
            driver: Some(driver.into_iter().flatten().collect::<Vec<_>>().join(", ")),
            ..DeviceFields::default()
        };
        record
    }

    /// Adds what samples say of the machine, models the energy, and tells the record, once it reads back as it was written.
    fn publish(&self, mut record: Record, seconds: f64, calls: u64) -> Result<()> {
        let samples = record.timing.samples_ns.clone().unwrap_or_default();
        let notes: Vec<String> = [spread(&samples), drift(&samples)].into_iter().flatten().collect();
        if !notes.is_empty() {
            record.disturbances = Some(notes);
        }
        if let Some(energy) = self.energy.as_ref().filter(|_| record.kind != Kind::Ceiling) {
            energy.fill(&mut record, seconds, calls);
        }
        let line = to_line(&record)?;
        let read = Reader::new(line.as_bytes()).next();
        match read {
            Some(Ok(read)) if read == record => {}
            Some(Err(warning)) => return Err(anyhow!("a record does not read back: {warning}")),
            _ => return Err(anyhow!("a record does not read back as it was written")),
        }
        tell(&Event::Record { record: &record, line: &line });
        Ok(())
    }

    fn caches(&self) -> Caches {
        Caches { last_level: LAST_LEVEL, rotated: self.plan.rotated }
    }

    /// Shapes of an entry in this mode.
    fn shapes(&self, entry: &Entry) -> &'static [&'static str] {
        if self.options.mode == Mode::Short { &entry.shapes[..entry.short] } else { entry.shapes }
    }

    async fn run(&self) -> Result<()> {
        let kernels: usize = SET.iter().map(|entry| entry.dtypes.len() * self.shapes(entry).len()).sum();
        let tokens = if self.options.tokens { 3 } else { 0 };
        tell(&Event::Device { device: description(&self.opened), steps: 1 + kernels + tokens });
        let mut index = 0;
        let roofs = self.roofs(&mut index).await?;
        for entry in SET {
            for &dtype in entry.dtypes {
                self.entry(entry, dtype, &roofs, &mut index).await?;
            }
        }
        if self.options.tokens {
            self.tokens(&roofs, &mut index).await?;
        }
        Ok(())
    }

    async fn roofs(&self, index: &mut usize) -> Result<Roofs> {
        step(index, "Ceilings of the device");
        let (bytes, time) = (self.plan.streamed, self.plan.roofs);
        let each = |what: &str| tell(&Event::Progress { text: what, done: 0.0, of: 0.0 });
        let roofs = roofs(&self.opened.backend, &self.clock, bytes, time, each).await?;
        for ceiling in &roofs.list {
            self.publish(ceiling.record(self.record(Kind::Ceiling), self.options.seed), 0.0, 0)?;
        }
        if stopped() { Err(Interrupted.into()) } else { Ok(roofs) }
    }

    /// An op on its shapes, the smallest first.
    async fn entry(&self, entry: &Entry, dtype: DType, roofs: &Roofs, index: &mut usize) -> Result<()> {
        // seconds of a floating-point operation or byte, from the shape before
        let mut pace: Option<f64> = None;
        for shape in self.shapes(entry) {
            step(index, &format!("{}, {dtype}, {shape}", entry.what));
            let missing =
                |why: &str| tell(&Event::Missing { what: entry.op, dtype: dtype.name(), shape, why });
            match self.kernel(entry, dtype, shape, roofs, &mut pace).await {
                Ok(None) => {}
                Ok(Some(why)) => missing(&why),
                Err(error) if is_end(&error) => return Err(error),
                Err(error) => missing(&format!("{error:#}")),
            }
        }
        Ok(())
    }

    /// Measures one kernel; gives the reason where it is left out.
    async fn kernel(
        &self,
        entry: &Entry,
        dtype: DType,
        shape: &str,
        roofs: &Roofs,
        pace: &mut Option<f64>,
    ) -> Result<Option<String>> {
        let device = &self.opened.device;
        let found = ops::find(entry.op)?;
        let sizes = found.sizes(shape)?;
        let op = found.build(&sizes, dtype, &**device.backend())?;
        let work = op.flops().max(op.bytes()) as f64;
        let longest = TOO_LONG * self.plan.kernel.as_secs_f64().max(0.5);
        if let Some(predicted) = pace.map(|pace| pace * work).filter(|predicted| *predicted > longest) {
            return Ok(Some(format!("left out: a call would take about {predicted:.0} s on this device")));
        }
        let choice = match device.select(fresh(device, &op), &[]) {
            Ok(choice) => choice,
            Err(error) => return Ok(Some(format!("no kernel of this build runs it: {error}"))),
        };
        let (seed, cache) = (self.options.seed, default_cache(&op));
        let mut record = self.record(Kind::Kernel);
        let before = data::operands(&op, seed)?;
        let mut launches = Launches::new(device, &op, choice, &before, cache, self.caches()).await?;
        launches.describe(&op, &sizes.to_string(), dtype.name(), cache, &mut record);
        record.workload.seed = Some(seed);
        tell(&Event::Progress { text: "checked against a reference in f64", done: 0.0, of: 0.0 });
        launches.verify(&op, &before, seed, &mut record).await?;
        drop(before);
        tell(&Event::Progress { text: "timed", done: 0.0, of: 0.0 });
        let mut shown = Shown { inner: &mut launches, clock: &self.clock, last: None };
        let samples = measure(&self.clock, &mut shown, Plan::effort(self.plan.kernel)).await?;
        launches.time(&op, samples, seed, &mut record);
        roofs.hold(&mut record, dtype, launches.in_cache(cache));
        let seconds = record.timing.median_ns.unwrap_or(0.0) * 1e-9;
        *pace = Some(seconds / work.max(1.0));
        self.publish(record, seconds, 1)?;
        Ok(None)
    }

    /// Prefill and decode of a model with random weights.
    async fn tokens(&self, roofs: &Roofs, index: &mut usize) -> Result<()> {
        step(index, &format!("Weights for the geometry of {MODEL} are drawn"));
        let missing = |shape: &str, why: &str| {
            tell(&Event::Missing { what: MODEL, dtype: WEIGHTS.name(), shape, why });
        };
        let model = match self.load() {
            Ok(model) => model,
            Err(error) if is_end(&error) => {
                return Err(if stopped() { Interrupted.into() } else { error });
            }
            Err(error) => {
                *index += 2;
                missing("", &format!("{error:#}"));
                return Ok(());
            }
        };
        let (n_prompt, n_gen) = (self.plan.n_prompt, self.plan.n_gen);
        let tests = [
            Test { n_prompt, n_gen: 0, n_depth: 0, n_parallel: 1, n_batch: 512 },
            Test { n_prompt: 0, n_gen, n_depth: 0, n_parallel: 1, n_batch: 512 },
        ];
        for test in tests {
            step(index, &format!("{} of {}", test.name(), model.name()));
            match self.test(&model, test, roofs).await {
                Ok(()) => {}
                Err(error) if is_end(&error) => return Err(error),
                Err(error) => missing(&test.name(), &format!("{error:#}")),
            }
        }
        Ok(())
    }

    fn load(&self) -> Result<Model> {
        fn progress(done: u64, of: u64) -> bool {
            tell(&Event::Progress { text: "weights", done: done as f64, of: of as f64 });
            !stopped()
        }
        let mut geometry = zoo::geometry(MODEL)?;
        let mut name = MODEL.to_owned();
        if self.options.mode == Mode::Short {
            (geometry.vocab, name) =
                (CUT.1, format!("{MODEL}, cut to {} layers and {} tokens", CUT.0, CUT.1));
            geometry.layers.truncate(CUT.0);
        }
        let source = Source::random(&name, geometry, self.options.seed);
        let options = LoadOptions {
            dtype: Some(WEIGHTS),
            kv_dtype: None,
            rows: vec![1, self.plan.n_prompt],
            policy: Policy::default(),
            progress: Some(&progress),
        };
        Ok(Model::load(&self.opened.device, &source, &options)?)
    }

    async fn test(&self, model: &Model, test: Test, roofs: &Roofs) -> Result<()> {
        let seed = self.options.seed;
        let go_on = |done: usize| {
            tell(&Event::Progress { text: "tokens", done: done as f64, of: 0.0 });
            !stopped()
        };
        let mut record = self.record(Kind::Tokens);
        let mut repetition = Repetition::new(model, test, seed, go_on).await?;
        let in_cache = model.weight_bytes() <= LAST_LEVEL;
        repetition.describe(seed, in_cache, &mut record);
        let mut shown = Shown { inner: &mut repetition, clock: &self.clock, last: None };
        let samples = measure(&self.clock, &mut shown, Plan::effort(self.plan.tokens)).await?;
        let (seconds, calls) = (samples.ns.iter().sum::<f64>() * 1e-9, samples.ns.len() as u64);
        repetition.time(samples, seed, &mut record);
        roofs.hold(&mut record, model.multiplied(), in_cache);
        self.publish(record, seconds, calls)
    }
}

fn step(index: &mut usize, title: &str) {
    tell(&Event::Step { index: *index, title });
    *index += 1;
}
