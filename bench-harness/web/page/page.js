// The page: asks the worker, shows what it tells, keeps the records.
const by = id => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// Numbers as reports have them.
const si = x => {
  const size = Math.abs(x);
  if (x === 0) return "0";
  if (size < 1e-4 || size >= 1e7) return x.toExponential(2).replace("e+", "e");
  return x.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
};
const scaled = units => x => {
  const [size, unit] = units.find(([size]) => Math.abs(x) >= size) || units[units.length - 1];
  return si(x / size) + " " + unit;
};
const time = scaled([[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]]);
const joules = scaled([[1e3, "kJ"], [1, "J"], [1e-3, "mJ"], [1e-6, "µJ"], [1e-9, "nJ"]]);
const bytes = x => scaled([[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]])(x);
const percent = x => (100 * x).toFixed(1) + " %";

// The worker; or the page itself, where workers have no WebGPU.
let send;
let worker = null;
function inWorker() {
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = event => hear(event.data);
  worker.onerror = event => hear({ kind: "failed", message: event.message || "the worker could not be started" });
  send = message => worker.postMessage(message);
}
async function inPage() {
  worker?.terminate();
  worker = null;
  const { answer } = await import("./engine.js");
  send = message => void answer(message, hear);
}

const state = { about: null, device: null, lines: [], rows: [], missing: [], running: false, stopped: false, steps: 1, samples: [], error: null };
// for tests, and for whoever is curious
globalThis.perjoule = state;
state.tell = message => hear(message);

function trouble(title, text, hints = []) {
  const box = by("trouble");
  box.querySelector("h2").textContent = title;
  box.querySelector("p").textContent = text;
  box.querySelector("ul").replaceChildren(...hints.map(hint => make("li", {}, hint)));
  box.hidden = false;
  document.documentElement.dataset.state = "trouble";
}

function noGpu() {
  const secure = globalThis.isSecureContext;
  trouble("This browser has no WebGPU", secure ? "Nothing can be measured here." : "WebGPU is offered to secure pages only, and this address is not secure.", secure ? [
    "Chrome, Edge and other Chromium browsers have it from version 113 on Windows and macOS, on Android from 121. On Linux, chrome://flags/#enable-unsafe-webgpu and #enable-vulkan turn it on.",
    "Safari has it from version 26, Firefox from 141 on Windows and 145 on macOS; in older ones dom.webgpu.enabled in about:config turns it on.",
    "chrome://gpu says why a browser that should have it does not.",
    "Without a browser: perjoule run --device webgpu:0",
  ] : [
    "Open it as http://localhost:PORT, or through https.",
    "From another machine: ssh -L 8080:localhost:8080 HOST, then http://localhost:8080 here.",
  ]);
}

function noAdapter() {
  trouble("This browser gives no adapter", "It has WebGPU, and offers no GPU to it.", [
    "Drivers may be on its list of those that it does not trust: chrome://gpu says so.",
    "A virtual machine or a remote desktop may have no GPU.",
    "A software adapter shows whether everything works: start Chromium with --enable-unsafe-webgpu --use-webgpu-adapter=swiftshader.",
  ]);
}

const facts = (list, pairs) => list.replaceChildren(...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
  .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));

function looked({ about, device, classes }) {
  Object.assign(state, { about, device });
  const features = device.features.length ? device.features.join(", ") : "none that kernels use";
  facts(by("facts"), [
    ["Adapter", about.adapter || device.name],
    ["Vendor", about.vendor],
    ["Architecture", about.architecture],
    ["Kind", about.software ? "software: it runs on the processor, and says nothing about a GPU" : null],
    ["Browser", [about.browser, about.os].filter(Boolean).join(", ")],
    ["Features", features],
    ["Clock", device.features.includes("timestamp") ? "the device's timestamps" : "the host's: this adapter has no timestamps"],
    ["Kernels", `${device.kernels} rows in this build`],
  ]);
  facts(by("limits"), [
    ...Object.entries(device.limits).map(([name, value]) => [name, /memory|buffer$|binding/.test(name) && value > 1024 ? bytes(value) : value]),
    ["all features of the adapter", about.offered.join(", ")],
  ]);
  const select = by("controls").elements.class;
  select.append(...classes.map(c => make("option", { value: c.id }, `modelled from ${c.name}, ${c.watts} W`)));
  by("device").hidden = by("controls").hidden = false;
  document.documentElement.dataset.state = "ready";
}

function hear(message) {
  if (message.kind === "no-gpu") {
    // workers have no WebGPU everywhere that pages do
    if (worker && navigator.gpu) inPage().then(() => send({ kind: "look" }));
    else noGpu();
  } else if (message.kind === "no-adapter") noAdapter();
  else if (message.kind === "looked") looked(message);
  else if (message.kind === "event") happened(JSON.parse(message.text));
  else if (message.kind === "done") ended();
  else if (message.kind === "failed") {
    state.error = message.message;
    trouble("It failed", message.message, ["Reload the page to begin anew. What was measured so far can be downloaded."]);
    ended();
  }
}

// Charts: Vega-Lite in the page's colours. They are drawn again with new data, at most once a frame.
const ink = "currentColor";
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  axis: { labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridColor: ink, gridOpacity: 0.13, domainOpacity: 0.5, tickOpacity: 0.5, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12, orient: "bottom", direction: "horizontal" },
  text: { fontSize: 12, fill: ink },
};
const colours = { f32: "#0072B2", f16: "#D55E00", bf16: "#009E73" };

// Phones have no room for whole names beside bars.
const narrow = matchMedia("(max-width: 640px)");

class Chart {
  constructor(id, specify) {
    this.element = by(id);
    this.specify = specify;
    this.rows = [];
    this.waiting = false;
    this.embed();
    narrow.addEventListener("change", () => {
      this.view?.finalize();
      this.view = null;
      this.embed();
      this.show(this.rows);
    });
    // also when it comes into sight: what is hidden has no width
    new ResizeObserver(() => this.show(this.rows)).observe(this.element);
  }
  embed() {
    const { left, ...spec } = this.specify(narrow.matches);
    this.left = left;
    this.ready = vegaEmbed(this.element, { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: 300, padding: { left: 0, right: 16, top: 4, bottom: 4 }, data: { name: "rows", values: [] }, ...spec }, {
      mode: "vega-lite", config, renderer: "svg", actions: false, ast: true, logLevel: 1, tooltip: { theme: "page" },
    }).then(({ view }) => { this.view = view; }, error => {
      this.element.classList.add("failed");
      this.element.textContent = "This chart could not be drawn: " + error.message;
    });
  }
  show(rows) {
    this.rows = rows;
    if (this.waiting) return;
    this.waiting = true;
    this.ready.then(() => requestAnimationFrame(() => {
      this.waiting = false;
      // what stands left of the plot has a width of its own, so that the plot's is known
      const width = this.element.clientWidth - this.left - 16;
      if (width > 0) this.view?.width(width).data("rows", this.rows.slice()).resize().runAsync();
    }));
  }
}

let live, shares;
function charts() {
  live ||= new Chart("live", () => ({
    left: 62,
    height: 120,
    mark: { type: "line", point: { size: 20, filled: true, fill: "#0072B2" }, color: "#0072B2", strokeWidth: 1 },
    encoding: {
      x: { field: "at", type: "quantitative", title: "sample", axis: { tickMinStep: 1, grid: false, format: "d" }, scale: { nice: false } },
      y: { field: "ms", type: "quantitative", title: "ms a call", scale: { zero: false }, axis: { tickCount: 4, format: ".3~g", minExtent: 44, maxExtent: 44 } },
    },
  }));
  shares ||= new Chart("shares", small => ({
    left: small ? 178 : 320,
    height: { step: 22 },
    mark: { type: "bar", clip: true, cornerRadiusEnd: 2, height: { band: 0.7 } },
    encoding: {
      y: { field: small ? "brief" : "name", type: "nominal", sort: null, title: null, axis: { labelLimit: small ? 174 : 316, minExtent: small ? 176 : 318, maxExtent: small ? 176 : 318, labelFontSize: small ? 10 : 12, domain: false, ticks: false } },
      x: { field: "share", type: "quantitative", stack: null, title: small ? "share of the roof" : "share of the measured roof", axis: { format: ".0%", tickCount: small ? 2 : 5 }, scale: { domainMax: { expr: "max(1, extent(pluck(data('rows'), 'share'))[1] || 1)" }, domainMin: 0 } },
      color: { field: "dtype", type: "nominal", title: null, ...(small ? { legend: null } : {}), scale: { domain: Object.keys(colours), range: Object.values(colours) } },
      tooltip: [{ field: "name", title: "result" }, { field: "dtype", title: "type" }, { field: "text", title: "throughput" }, { field: "share", title: "share", format: ".1%" }],
    },
  }));
}

const testOf = r => [r.n_prompt ? "pp" + r.n_prompt : "", r.n_gen ? "tg" + r.n_gen : ""].filter(Boolean).join("+");
const nameOf = r => r.kind === "tokens" ? r.model : r.kind === "ceiling" ? `ceiling: ${r.op.replace("_", "-")}` : r.op;
// one matrix or sequence goes without saying
const plain = shape => shape.split(",").filter(part => part !== "b=1").join(" ");
const shapeOf = r => r.kind === "tokens" ? testOf(r) : r.kind === "ceiling" ? r.config : plain(r.shape);

// The rate that says most: tokens, arithmetic, or bytes where there is little of it.
function rate(r) {
  if (r.avg_ts) return si(r.avg_ts) + " tokens/s";
  if (r.gflops && r.flops > 2 * r.bytes) return si(r.gflops) + " GFLOP/s";
  if (r.kind === "ceiling" && r.gflops) return si(r.gflops) + " GFLOP/s";
  return r.gbps ? si(r.gbps) + " GB/s" : "-";
}

function row(r) {
  const cell = (text, className = "") => make("td", { className }, text ?? "-");
  const checked = r.verified === true ? "right" : r.verified === false ? "WRONG" : "not checked";
  const interval = r.ci95_ns ? `${time(r.ci95_ns[0])}..${time(r.ci95_ns[1])}` : "-";
  const energy = r.joules_per_call === null || r.joules_per_call === undefined ? "-" : `${joules(r.joules_per_call)}, modelled`;
  const line = make("tr", { className: r.valid ? "" : "invalid" },
    cell(nameOf(r)), cell(shapeOf(r), "shape"), cell(r.dtype || "-", "word"),
    cell(r.kind === "ceiling" ? (r.provenance === "modelled" ? "modelled" : "-") : checked, r.provenance === "modelled" ? "modelled" : r.verified === false ? "wrong" : ""),
    cell(r.median_ns ? time(r.median_ns) : "-", "n"), cell(interval, "n"), cell(rate(r), "n"),
    cell(r.roof_fraction === null || r.roof_fraction === undefined ? "-" : percent(r.roof_fraction), "n"),
    cell(energy, energy === "-" ? "n" : "n modelled"), cell(r.clock || "-"), cell(r.kernel || "-", "kernel"));
  if (!r.valid) line.title = r.invalid_reasons.join("; ");
  return line;
}

function tiles() {
  const best = (list, of) => list.reduce((a, b) => (a && of(a) >= of(b) ? a : b), null);
  const valid = state.rows.filter(r => r.valid && r.provenance !== "modelled");
  const roof = op => best(valid.filter(r => r.kind === "ceiling" && r.op === op), r => r.gflops ?? r.gbps);
  const product = best(valid.filter(r => r.op === "matmul" && r.kind === "kernel" && r.gflops && !/^m=1,/.test(r.shape)), r => r.gflops);
  const prefill = valid.find(r => r.kind === "tokens" && r.n_prompt);
  const decode = valid.find(r => r.kind === "tokens" && r.n_gen);
  const split = text => { const at = text.lastIndexOf(" "); return [text.slice(0, at), text.slice(at)]; };
  const tile = (what, r, of, how = "measured") => {
    if (!r) return [];
    const [value, unit] = split(rate(r));
    return [make("li", {}, make("span", { className: "what" }, what), make("span", { className: "value" }, value, make("span", { className: "unit" }, unit)), make("span", { className: "of" }, of(r)))];
  };
  const list = [
    ...tile("Decode", decode, r => `${r.model}, ${r.dtype}`),
    ...tile("Prefill", prefill, r => `${r.model}, ${testOf(r)}, ${r.dtype}`),
    ...tile("Matrix product", product, r => `${r.dtype}, ${plain(r.shape)}`),
    ...tile("Arithmetic at most", roof("multiply_add"), r => `ceiling, ${r.dtype}`),
    ...tile("Memory read at most", roof("read"), r => `ceiling, ${r.config}`),
  ];
  const energy = decode && decode.joules_per_output_token;
  if (energy) {
    const [value, unit] = split(joules(energy));
    list.push(make("li", { className: "modelled" }, make("span", { className: "what" }, "Energy a token"), make("span", { className: "value" }, value, make("span", { className: "unit" }, unit)), make("span", { className: "how" }, "modelled"), make("span", { className: "of" }, `decode, ${decode.device_class || "class unknown"}`)));
  }
  by("best").replaceChildren(...list);
}

function happened(event) {
  if (event.kind === "device") {
    state.steps = event.steps;
  } else if (event.kind === "step") {
    by("live").closest("figure").hidden = false;
    by("bar").value = event.index / state.steps;
    by("step").textContent = event.title;
    by("detail").textContent = `step ${event.index + 1} of ${state.steps}`;
    state.samples = [];
    live.show([]);
  } else if (event.kind === "progress") {
    const part = event.of ? `${event.text}: ${percent(event.done / event.of)}` : event.done ? `${event.text}: ${event.done}` : event.text;
    by("detail").textContent = part;
  } else if (event.kind === "sample") {
    state.samples.push({ at: state.samples.length, ms: event.ms });
    if (state.samples.length > 400) state.samples = state.samples.slice(-400);
    live.show(state.samples);
  } else if (event.kind === "record") {
    const r = event.record;
    state.lines.push(event.line);
    state.rows.push(r);
    by("results").hidden = false;
    by("table").tBodies[0].append(row(r));
    const drawn = state.rows.filter(r => r.valid && typeof r.roof_fraction === "number");
    const numbers = r => r.kind === "tokens" ? testOf(r) : plain(r.shape).replace(/[a-z]+=/g, "").replaceAll(" ", "·");
    const opOf = r => r.kind === "tokens" ? "tokens" : r.op;
    shares.show(drawn.map(r => ({ name: `${nameOf(r)} ${shapeOf(r)}, ${r.dtype}`, brief: `${opOf(r)} ${numbers(r)} ${r.dtype}`, dtype: r.dtype, share: r.roof_fraction, text: rate(r) })));
    tiles();
    by("download").disabled = false;
  } else if (event.kind === "missing") {
    state.missing.push(event);
    by("results").hidden = by("missing").hidden = false;
    by("missing").querySelector("tbody").append(make("tr", {}, ...[event.what, event.shape || "-", event.dtype].map(t => make("td", {}, t)), make("td", { className: "long" }, event.why)));
  }
}

function ended() {
  if (!state.running) return;
  state.running = false;
  by("start").hidden = false;
  by("start").textContent = "Start again";
  by("stop").hidden = true;
  by("controls").querySelectorAll("fieldset").forEach(f => { f.disabled = false; });
  if (!state.error) {
    by("bar").value = state.stopped ? by("bar").value : 1;
    by("live").closest("figure").hidden = true;
    by("step").textContent = state.stopped ? "Stopped" : "Done";
    const wrong = state.rows.filter(r => r.verified === false).length;
    const right = state.rows.filter(r => r.verified === true).length;
    by("detail").textContent = `${state.rows.length} records; ${right} results right, ${wrong} wrong, ${state.missing.length} not measured`;
  }
  document.documentElement.dataset.state = state.error ? "trouble" : "done";
}

by("controls").addEventListener("submit", event => {
  event.preventDefault();
  if (state.running) return;
  const form = by("controls").elements;
  Object.assign(state, { lines: [], rows: [], missing: [], running: true, stopped: false, error: null });
  by("table").tBodies[0].replaceChildren();
  by("missing").querySelector("tbody").replaceChildren();
  by("missing").hidden = by("trouble").hidden = true;
  by("best").replaceChildren();
  by("run").hidden = false;
  by("start").hidden = true;
  by("stop").hidden = false;
  by("download").disabled = true;
  by("controls").querySelectorAll("fieldset").forEach(f => { f.disabled = true; });
  document.documentElement.dataset.state = "running";
  charts();
  shares.show([]);
  const about = state.about;
  send({
    kind: "run",
    options: {
      mode: form.mode.value, class: form.class.value || null, tokens: form.tokens.checked, seed: 1,
      adapter: about.adapter, software: about.software, browser: about.browser, os: about.os, osVersion: null, cpuCount: about.cpuCount,
    },
  });
});
by("stop").addEventListener("click", () => {
  state.stopped = true;
  by("detail").textContent = "stopping";
  send({ kind: "stop" });
});
by("download").addEventListener("click", () => {
  const id = state.rows[0]?.run_id || "run";
  const url = URL.createObjectURL(new Blob(state.lines, { type: "application/x-ndjson" }));
  make("a", { href: url, download: `perjoule-web-${id}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});

const root = document.documentElement;
const themes = ["", "light", "dark"];
by("theme").addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  by("theme").textContent = "Theme: " + (next || "as the system");
});

if (!navigator.gpu) noGpu();
else {
  inWorker();
  send({ kind: "look" });
}
