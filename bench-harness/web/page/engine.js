// The wasm module, for the worker, and for the page itself where workers have no WebGPU.
import init, { classes, look, run, stop } from "./perjoule_web.js";

// What the browser tells of itself and of the adapter that it prefers.
async function surroundings() {
  const about = {};
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) return null;
  const info = adapter.info || {};
  about.vendor = info.vendor || null;
  about.architecture = info.architecture || null;
  // a description is the whole name; else what there is
  about.adapter = info.description || [info.vendor, info.architecture, info.device].filter(Boolean).join(" ") || null;
  about.software = Boolean(info.isFallbackAdapter ?? adapter.isFallbackAdapter)
    || /swiftshader|llvmpipe|lavapipe|softpipe|basic render/i.test([info.architecture, info.description, info.device].join(" "));
  about.offered = [...adapter.features].sort();
  about.cpuCount = navigator.hardwareConcurrency || null;
  const data = navigator.userAgentData;
  const brand = data?.brands?.find(b => !/not.?a.?brand|^chromium$/i.test(b.brand)) || data?.brands?.find(b => /chromium/i.test(b.brand));
  const plain = /(Firefox|Edg|Chrome|Version)\/([\d.]+)/.exec(navigator.userAgent);
  about.browser = brand ? `${brand.brand} ${brand.version}` : plain ? `${plain[1].replace("Version", "Safari")} ${plain[2]}` : null;
  about.os = (data?.platform || /Windows|Mac OS X|Android|iPhone|Linux/.exec(navigator.userAgent)?.[0] || "").toLowerCase() || null;
  return about;
}

// Answers one message of the page; `tell` gets what is answered.
export async function answer(message, tell) {
  try {
    if (message.kind === "look") {
      if (!navigator.gpu) return tell({ kind: "no-gpu" });
      await init();
      const about = await surroundings();
      if (!about) return tell({ kind: "no-adapter" });
      const device = JSON.parse(await look());
      tell({ kind: "looked", about, device, classes: JSON.parse(classes()) });
    } else if (message.kind === "run") {
      await run(JSON.stringify(message.options), text => tell({ kind: "event", text }));
      tell({ kind: "done", stopped: Boolean(message.stopped) });
    } else if (message.kind === "stop") {
      stop();
    }
  } catch (error) {
    tell({ kind: "failed", message: String(error?.message || error) });
  }
}
