"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const $ = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // Numbers as the page's own text has them.
  const exponent = (x, digits) => x.toExponential(digits).replace("e+", "e");
  const si = x => {
    const size = Math.abs(x);
    if (x === 0) return "0";
    if (size < 1e-4 || size >= 1e7) return exponent(x, 2);
    return x.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
  };
  const scaled = units => x => {
    const [size, unit] = units.find(([size]) => Math.abs(x) >= size) || units[units.length - 1];
    return si(x / size) + " " + unit;
  };
  const formats = {
    int: x => x.toFixed(0),
    si,
    ns: scaled([[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]]),
    joules: scaled([[1e3, "kJ"], [1, "J"], [1e-3, "mJ"], [1e-6, "µJ"], [1e-9, "nJ"]]),
    percent: x => (100 * x).toFixed(1) + " %",
    error: x => (x === 0 ? "0" : exponent(x, 0)),
  };

  // A column gives the value, the text and the sorting key of a row.
  const sets = {};
  for (const [name, set] of Object.entries(page.sets)) {
    sets[name] = { n: set.n, columns: new Map() };
    for (const c of set.columns) {
      const value = c.texts ? row => c.texts[c.rows[row]] : row => c.rows[row];
      const show = c.texts
        ? row => value(row) || "-"
        : row => (value(row) === null ? "-" : formats[c.format](value(row)));
      sets[name].columns.set(c.key, { key: c.key, title: c.title, number: !c.texts, value, show });
    }
  }
  const column = (set, key) => {
    const [low, high] = key.split("|").map(k => set.columns.get(k));
    if (!high) return low;
    const show = row => (low.value(row) === null || high.value(row) === null ? "-" : low.show(row) + ".." + high.show(row));
    return { key, title: "interval", number: true, value: low.value, show };
  };
  const rowsOf = (set, rows) => rows || Array.from({ length: set.n }, (_, i) => i);

  // Tables: sorted by a heading's button, filtered by a word, shown in pages.
  const PAGE = 100;
  const PRINTED = 1000;
  const tables = [];
  for (const box of document.querySelectorAll(".table")) {
    const view = page.views[box.dataset.view];
    const set = sets[view.data];
    const columns = view.columns.map(key => column(set, key));
    const all = rowsOf(set, view.rows);
    const notes = set.columns.get("notes");
    const table = box.querySelector("table");
    const body = table.tBodies[0];
    const caption = table.caption;
    const name = caption.textContent.replace(/: the first .*/, "");
    const state = { rows: all, at: 0, by: null, down: false, word: "" };

    const cell = (c, row) => {
      const text = c.show(row);
      const element = $("td", {}, text);
      if (c.number) element.className = "n";
      else if (text === "modelled") element.className = "modelled";
      else if (c.key === "notes" || c.key === "how") element.className = "long";
      else if (text.length < 12) element.className = "word";
      return element;
    };
    const draw = most => {
      const shown = state.rows.slice(state.at, state.at + most);
      body.replaceChildren(...shown.map(row => {
        const line = $("tr", {}, ...columns.map(c => cell(c, row)));
        if (notes && notes.value(row).startsWith("INVALID")) line.className = "invalid";
        return line;
      }));
      const [from, to] = [state.rows.length ? state.at + 1 : 0, state.at + shown.length];
      const found = state.rows.length === all.length ? "" : ` found among ${all.length}`;
      caption.textContent = `${name}: rows ${from} to ${to} of ${state.rows.length}${found}`;
      if (back) {
        back.disabled = state.at === 0;
        next.disabled = to >= state.rows.length;
      }
    };
    const arrange = () => {
      const word = state.word.toLowerCase();
      state.rows = word ? all.filter(row => columns.some(c => c.show(row).toLowerCase().includes(word))) : all.slice();
      if (state.by) {
        const { value, number } = state.by;
        const order = (a, b) => {
          const [x, y] = [value(a), value(b)];
          // what is unknown stays last
          if (x === null || y === null) return (x === null) - (y === null) || a - b;
          const sign = number ? x - y : x.localeCompare(y, "en", { numeric: true });
          return (state.down ? -sign : sign) || a - b;
        };
        state.rows.sort(order);
      }
      state.at = 0;
      draw(PAGE);
    };

    let back, next;
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      const button = $("button", { type: "button" }, columns[i].title);
      button.addEventListener("click", () => {
        state.down = state.by === columns[i] ? !state.down : columns[i].number;
        state.by = columns[i];
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        arrange();
      });
      th.replaceChildren(button);
    });
    if (all.length > 10) {
      const bar = $("div", { className: "bar" });
      const input = $("input", { type: "search", placeholder: "Filter rows", ariaLabel: `Filter rows of ${name}` });
      let waiting;
      input.addEventListener("input", () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => { state.word = input.value; arrange(); }, 120);
      });
      bar.append(input);
      if (all.length > PAGE) {
        const turn = by => () => { state.at += by; draw(PAGE); };
        back = $("button", { type: "button" }, "Previous");
        next = $("button", { type: "button" }, "Next");
        back.addEventListener("click", turn(-PAGE));
        next.addEventListener("click", turn(PAGE));
        bar.append(back, next);
      }
      box.prepend(bar);
    }
    caption.setAttribute("aria-live", "polite");
    const entry = { draw, details: box.closest("details") };
    tables.push(entry);
    // a closed table is drawn when it is opened
    if (!entry.details) draw(PAGE);
    else entry.details.addEventListener("toggle", () => entry.details.open && draw(PAGE), { once: true });
  }

  // Charts: drawn when they come near the screen, and the rest when there is time.
  const MANY = 2000;
  const charts = [];
  const values = {};
  const valuesOf = (name, rows) => {
    const set = sets[name];
    const columns = [...set.columns.values()];
    const one = row => Object.fromEntries(columns.map(c => [c.key, c.value(row)]));
    if (rows) return rows.map(one);
    return (values[name] ||= rowsOf(set).map(one));
  };
  const draw = chart => {
    if (chart.promise) return chart.promise;
    const { data, rows, spec } = page.charts[chart.id];
    const list = valuesOf(data, rows);
    chart.canvas = list.length > MANY;
    // a canvas does not know the page's colour, so it is told
    chart.ink = getComputedStyle(chart.element).color;
    const inked = value => chart.canvas
      ? JSON.parse(JSON.stringify(value).replaceAll('"currentColor"', JSON.stringify(chart.ink)))
      : value;
    chart.promise = vegaEmbed(chart.element, { ...inked(spec), datasets: { [data]: list } }, {
      mode: "vega-lite",
      config: inked(page.config),
      renderer: chart.canvas ? "canvas" : "svg",
      actions: false,
      // an interpreter for expressions: the page's policy allows no eval
      ast: true,
      tooltip: { theme: "page" },
    }).then(
      result => { chart.view = result.view; },
      error => {
        chart.element.classList.add("failed");
        chart.element.textContent = "This chart could not be drawn; its data is in the table below. " + error.message;
        console.error(chart.id, error);
      },
    );
    return chart.promise;
  };
  for (const element of document.querySelectorAll(".chart")) charts.push({ element, id: element.dataset.chart });
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(charts.find(chart => chart.element === entry.target));
    }
  }, { rootMargin: "300px" });
  charts.forEach(chart => seen.observe(chart.element));
  const idle = work => setTimeout(work, 20);
  const rest = () => {
    const chart = charts.find(chart => !chart.promise);
    if (chart) draw(chart).then(() => idle(rest));
    else Promise.all(charts.map(chart => chart.promise)).then(() => { document.documentElement.dataset.charts = "drawn"; });
  };
  idle(rest);

  // Theme: charts take the page's colour; only canvases are drawn again.
  const root = document.documentElement;
  const repaint = () => charts.filter(chart => chart.canvas && chart.view).forEach(chart => {
    chart.view.finalize();
    chart.promise = null;
    draw(chart);
  });
  const themes = ["", "light", "dark"];
  const theme = document.getElementById("theme");
  const apply = choice => {
    if (choice) root.dataset.theme = choice;
    else delete root.dataset.theme;
    theme.textContent = "Theme: " + (choice || "as the system");
    repaint();
  };
  theme.hidden = false;
  theme.addEventListener("click", () => apply(themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  // Printing: tables long, and by the button canvases as vectors.
  const lengthen = rows => tables.forEach(table => {
    if (!table.details || table.details.open) table.draw(rows);
  });
  addEventListener("beforeprint", () => lengthen(PRINTED));
  addEventListener("afterprint", () => lengthen(PAGE));
  const print = document.getElementById("print");
  print.hidden = false;
  print.addEventListener("click", async () => {
    await Promise.all(charts.map(draw));
    const swapped = [];
    for (const chart of charts.filter(chart => chart.canvas && chart.view)) {
      const canvas = chart.element.querySelector("canvas");
      const vector = new DOMParser().parseFromString((await chart.view.toSVG()).replaceAll(chart.ink, "currentColor"), "image/svg+xml").documentElement;
      canvas.replaceWith(vector);
      swapped.push([vector, canvas]);
    }
    window.print();
    swapped.forEach(([vector, canvas]) => vector.replaceWith(canvas));
  });
})();
