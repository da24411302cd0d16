// The page of `perjoule web` in a headless Chromium: `cargo xtask web --test` runs this and sets
//   BROWSER   the browser's program
//   PERJOULE  perjoule, built with the feature `web`
//   ADDRESS   a page that is served already, instead of by perjoule
//   PICTURES  a folder for pictures of the page; none without
import Ajv2020 from "ajv/dist/2020.js";
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { ADDRESS, BROWSER, PERJOULE, PICTURES } = process.env;
const MINUTES = 60_000;
const QUIET = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const folder = mkdtempSync(join(tmpdir(), "perjoule-web-"));

// A browser with a profile of its own.
const browse = (...more) => chromium.launch({ executablePath: BROWSER, headless: true, args: [...QUIET, ...more], ignoreDefaultArgs: ["--disable-gpu"] });

// perjoule web on a free port; gives its address.
function serve() {
  const server = spawn(PERJOULE, ["web", "--port", "0"], { stdio: ["ignore", "pipe", "inherit"] });
  return new Promise((resolve, reject) => {
    let said = "";
    server.stdout.on("data", data => {
      said += data;
      const found = /http:\S+/.exec(said);
      if (found) resolve({ server, address: found[0] });
    });
    server.on("exit", code => reject(new Error(`perjoule web ended with ${code}`)));
  });
}

// A page whose errors are failures of the test.
async function open(browser, address, size = { width: 1280, height: 900 }) {
  const context = await browser.newContext({ viewport: size, acceptDownloads: true });
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", error => errors.push(String(error)));
  page.on("console", message => message.type() === "error" && errors.push(message.text()));
  await page.goto(address, { timeout: 2 * MINUTES });
  return { page, errors };
}

const stateOf = page => page.evaluate(() => document.documentElement.dataset.state);
const until = (page, states, timeout = 15 * MINUTES) =>
  page.waitForFunction(wanted => wanted.includes(document.documentElement.dataset.state), states, { timeout });
const perjoule = (...args) => execFileSync(PERJOULE, args, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

async function ready(page) {
  await until(page, ["ready", "trouble"], 2 * MINUTES);
  assert.equal(await stateOf(page), "ready", await page.textContent("#trouble"));
}

async function start(page, { tokens = true, mode = "short", energy = "" } = {}) {
  await page.check(`input[name=mode][value=${mode}]`);
  await page.setChecked("input[name=tokens]", tokens);
  await page.selectOption("select[name=class]", energy);
  await page.click("#start");
}

// The records of a finished run, as downloaded.
async function download(page, name) {
  const [file] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  const path = join(folder, name);
  await file.saveAs(path);
  assert.match(file.suggestedFilename(), /^perjoule-web-.*\.jsonl$/);
  return path;
}

function records(path) {
  const schema = JSON.parse(perjoule("schema"));
  const valid = new Ajv2020({ strict: false, validateFormats: false }).compile(schema);
  return readFileSync(path, "utf8").trimEnd().split("\n").map((line, i) => {
    const record = JSON.parse(line);
    assert.ok(valid(record), `line ${i + 1}: ${JSON.stringify(valid.errors)}`);
    return record;
  });
}

const tests = {
  async "a run is right, and perjoule reads its records"(address) {
    const browser = await browse(...WEBGPU);
    const { page, errors } = await open(browser, address);
    await ready(page);
    assert.equal(await page.textContent("h1"), "What this device computes, in this browser");
    await start(page, { energy: "nvidia-rtx4090" });
    if (PICTURES) {
      await page.waitForFunction(() => globalThis.perjoule.rows.length > 6, null, { timeout: 5 * MINUTES });
      await page.screenshot({ path: join(PICTURES, "running-1280.png"), fullPage: true });
    }
    await until(page, ["done", "trouble"]);
    assert.equal(await stateOf(page), "done", await page.textContent("#trouble"));
    const missing = await page.evaluate(() => globalThis.perjoule.missing.map(m => `${m.what} ${m.dtype} ${m.shape}: ${m.why}`));
    missing.forEach(what => console.log("  missing:", what));
    const path = await download(page, "run.jsonl");
    const list = records(path);
    const of = kind => list.filter(r => r.kind === kind);
    assert.ok(list.every(r => r.valid), "every record is valid");
    assert.ok(of("ceiling").some(r => r.op === "read" && r.gbps > 0), "memory was measured");
    assert.ok(of("ceiling").some(r => r.op === "multiply_add" && r.gflops > 0), "arithmetic was measured");
    assert.ok(of("kernel").length > 0, "kernels were measured");
    for (const r of of("kernel")) {
      assert.equal(r.verified, true, `${r.op} ${r.shape} ${r.dtype}`);
      assert.equal(r.energy_kind, "modelled");
      assert.ok(r.median_ns > 0);
      // one sample, where a call takes longer than there is time, has no interval
      if (r.ci95_ns) assert.ok(r.ci95_ns[0] <= r.median_ns && r.median_ns <= r.ci95_ns[1]);
      else assert.equal(r.samples_ns.length, 1);
      assert.ok(["host", "device"].includes(r.clock));
      assert.equal(r.device_software, true);
    }
    for (const r of of("tokens")) assert.ok(r.avg_ts > 0 && r.joules_per_total_token > 0, "tokens have a rate and modelled joules");
    if (!missing.length) {
      assert.equal(of("tokens").length, 2, "prefill and decode");
      for (const op of ["matmul", "attention", "rms_norm", "softmax", "gated", "add"]) assert.ok(of("kernel").some(r => r.op === op), op);
    }
    console.log(`  ${list.length} records, ${of("kernel").length} kernels right; clock: ${of("kernel")[0].clock}`);
    const copy = join(folder, "copy.jsonl");
    copyFileSync(path, copy);
    const compared = perjoule("compare", path, copy);
    assert.ok(compared.length > 0);
    const report = perjoule("report", path, "--format", "md");
    assert.match(report, /add/);
    assert.deepEqual(errors, []);
    if (PICTURES) {
      await page.screenshot({ path: join(PICTURES, "done-1280.png"), fullPage: true });
      await page.setViewportSize({ width: 390, height: 844 });
      await page.waitForTimeout(500);
      await page.screenshot({ path: join(PICTURES, "done-390.png"), fullPage: true });
      await page.emulateMedia({ colorScheme: "dark" });
      await page.screenshot({ path: join(PICTURES, "dark-390.png"), fullPage: true });
    }
    for (const width of [1280, 390, 320]) {
      await page.setViewportSize({ width, height: 844 });
      await page.waitForTimeout(200);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `at ${width} px the page is ${wide} px wide`);
    }
    await browser.close();
  },

  async "two tabs at once"(address) {
    const browser = await browse(...WEBGPU);
    const tabs = [await open(browser, address), await open(browser, address)];
    for (const { page } of tabs) await ready(page);
    await Promise.all(tabs.map(({ page }) => start(page, { tokens: false })));
    for (const { page, errors } of tabs) {
      await until(page, ["done", "trouble"]);
      assert.equal(await stateOf(page), "done", await page.textContent("#trouble"));
      const rows = await page.evaluate(() => globalThis.perjoule.rows);
      assert.ok(rows.filter(r => r.kind === "kernel").length > 0);
      assert.ok(rows.every(r => r.verified !== false && r.valid));
      assert.ok(rows.every(r => r.joules === null), "energy is unknown where no class was picked");
      assert.deepEqual(errors, []);
    }
    const ids = await Promise.all(tabs.map(({ page }) => page.evaluate(() => globalThis.perjoule.rows[0].run_id)));
    assert.notEqual(ids[0], ids[1]);
    await browser.close();
  },

  async "a run is stopped, and another one begins"(address) {
    const browser = await browse(...WEBGPU);
    const { page, errors } = await open(browser, address);
    await ready(page);
    await start(page, { mode: "long", tokens: false });
    await page.waitForFunction(() => globalThis.perjoule.samples.length > 0 || globalThis.perjoule.rows.length > 0, null, { timeout: 5 * MINUTES });
    await page.click("#stop");
    await until(page, ["done", "trouble"], 5 * MINUTES);
    assert.equal(await page.textContent("#step"), "Stopped");
    await start(page, { tokens: false });
    await page.waitForFunction(() => globalThis.perjoule.rows.length > 0, null, { timeout: 5 * MINUTES });
    assert.deepEqual(errors, []);
    await browser.close();
  },

  async "without WebGPU the page says what to do"(address) {
    const browser = await browse("--disable-features=WebGPU,WebGPUService");
    const context = await browser.newContext();
    // where the flag is not enough
    await context.addInitScript(() => { delete Navigator.prototype.gpu; });
    const page = await context.newPage();
    await page.goto(address, { timeout: 2 * MINUTES });
    await until(page, ["trouble"], MINUTES);
    const text = await page.textContent("#trouble");
    assert.match(text, /no WebGPU/);
    assert.match(text, /Chrome/);
    assert.match(text, /perjoule run --device webgpu/);
    assert.ok(await page.isHidden("#controls"), "there is nothing to start");
    if (PICTURES) await page.screenshot({ path: join(PICTURES, "without-webgpu.png") });
    await browser.close();
  },

  async "without an adapter the page says so"(address) {
    const browser = await browse(...WEBGPU);
    const context = await browser.newContext();
    const page = await context.newPage();
    // a worker that is told so by the browser cannot be made here: the page hears what the worker would say
    await page.route("**/engine.js", route => route.fulfill({
      contentType: "text/javascript",
      body: "export async function answer(message, tell) { tell({ kind: 'no-adapter' }); }",
    }));
    await page.goto(address, { timeout: 2 * MINUTES });
    await until(page, ["trouble"], MINUTES);
    assert.match(await page.textContent("#trouble"), /no adapter/);
    await browser.close();
  },
};

const { server, address } = ADDRESS ? { address: ADDRESS } : await serve();
let failed = 0;
try {
  const only = process.argv[2] || "";
  for (const [name, test] of Object.entries(tests).filter(([name]) => name.includes(only))) {
    const start = Date.now();
    try {
      await test(address);
      console.log(`ok    ${name} (${((Date.now() - start) / 1000).toFixed(0)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${name}`);
      console.error(error);
    }
  }
  for (const [path, status, type] of ADDRESS ? [] : [["", 200, "text/html"], ["perjoule_web_bg.wasm", 200, "application/wasm"], ["page.js", 200, "text/javascript"], ["../Cargo.toml", 404, "text/plain"], ["nothing", 404, "text/plain"]]) {
    const answer = await fetch(new URL(path, address));
    assert.equal(answer.status, status, path);
    assert.ok(answer.headers.get("content-type").startsWith(type), `${path}: ${answer.headers.get("content-type")}`);
  }
} finally {
  server?.removeAllListeners("exit");
  server?.kill("SIGINT");
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);
