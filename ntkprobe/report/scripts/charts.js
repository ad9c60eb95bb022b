// A picture: a chart of Vega-Lite with its caption, its table and its CSV.

const INK = {
  light: { text: "#222", faint: "#666", grid: "#e4e4e4", paper: "#ffffff", rule: "#222" },
  dark: { text: "#e8e8e8", faint: "#aaa", grid: "#3a3d42", paper: "#1b1d21", rule: "#eee" },
};
const RUN_COLOURS = {
  light: ["#555555", "#117733", "#882255", "#3d7ab5", "#8a8a2a", "#332288", "#359688", "#aa4499"],
  dark: ["#c0c0c0", "#5fbf85", "#e08db4", "#9cc3e6", "#cccc77", "#9d90e0", "#6fd0c0", "#d98cd0"],
};
const PART_COLOURS = {
  light: { embedding: "#b3a125", attention: "#332288", MLP: "#5fa8cf", norms: "#888888", head: "#117733" },
  dark: { embedding: "#ddcc77", attention: "#9d90e0", MLP: "#88ccee", norms: "#aaaaaa", head: "#5fbf85" },
};
const theme = () => (isDark() ? "dark" : "light");
const ink = () => INK[theme()];
const runColour = (place) => RUN_COLOURS[theme()][place % RUN_COLOURS.light.length];
const groupColour = (group) => (isDark() ? group.dark : group.colour);
const groupText = (group) => (isDark() ? group.dark : group.text);

function config() {
  const { text, faint, grid } = ink();
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  return {
    background: null,
    font,
    view: { stroke: null },
    axis: { labelColor: faint, titleColor: text, titleFontWeight: 500, gridColor: grid, domainColor: faint, tickColor: faint, labelFontSize: 11, titleFontSize: 11.5, labelFlush: false },
    axisX: { grid: false },
    text: { color: text },
    title: { color: text, fontSize: 13, fontWeight: 600, anchor: "start" },
    header: { labelColor: text, titleColor: text },
    legend: { labelColor: text, titleColor: text },
  };
}

// Nothing is fetched for a chart, whatever a specification says.
const nothing = () => Promise.reject(new Error("this page fetches nothing"));
const loader = { load: nothing, sanitize: nothing, http: nothing, file: nothing };

// Runs a Vega specification in an element, its expressions interpreted and never compiled.
function runView(specification, place, renderer = "svg") {
  const container = element("div"); // Vega describes it anew; ours is described by its picture
  place.replaceChildren(container);
  const runtime = vega.parse(specification, null, { ast: true });
  return new vega.View(runtime, {
    expr: vegaInterpreter.expressionInterpreter,
    renderer,
    loader,
    container,
    hover: false,
    logLevel: vega.Warn,
  });
}

// A chart with its caption, table and CSV. `options`: name, title, note, spec(width), rows(),
// columns, label(rows), and where there are, signals(), tip(datum), click(datum), empty(rows).
class Picture {
  constructor(options) {
    this.options = options;
    this.place = element("div", { class: "chart", role: "img" });
    this.numbers = element("div");
    this.details = element(
      "details",
      { class: "numbers", ontoggle: () => this.fillTable() },
      element("summary", {}, "Table"),
      this.numbers,
    );
    this.caption = element("figcaption", {}, options.title ?? "");
    this.node = element(
      "figure",
      { class: "picture", "data-name": options.name },
      this.caption,
      this.place,
      element(
        "div",
        { class: "under" },
        options.note ? element("p", { class: "note" }, options.note) : null,
        element("div", { class: "tools" }, csvButton(options.name, options.columns, () => this.csvRows()), this.details),
      ),
    );
  }

  csvRows() {
    return this.options.csvRows ? this.options.csvRows() : this.options.rows();
  }

  fillTable() {
    if (!this.details.open) return;
    const rows = this.csvRows();
    this.numbers.replaceChildren(table(this.options.columns, rows, { caption: this.options.name }));
  }

  forget() {
    this.view?.finalize();
    this.view = null;
  }

  // Draws, or draws anew what has changed.
  update() {
    const { options } = this;
    const rows = options.rows();
    if (options.caption) this.caption.replaceChildren(options.caption());
    this.place.setAttribute("aria-label", options.label ? options.label(rows) : options.title);
    const width = Math.max(200, this.place.clientWidth || this.node.clientWidth || 300);
    const key = `${theme()} ${width} ${options.key?.() ?? ""}`;
    if (!this.view || key !== this.key) this.build(rows, width, key);
    else this.refresh(rows);
    if (this.details.open) this.fillTable();
  }

  build(rows, width, key) {
    this.forget();
    this.key = key;
    this.rows = rows;
    const wanted = { ...this.options.spec(width, rows), data: { name: "rows", values: rows }, config: config() };
    const compiled = vegaLite.compile(wanted).spec;
    this.view = runView(compiled, this.place);
    this.set(this.options.signals?.() ?? {});
    if (this.options.tip) pointAt(this.view, this.options.tip);
    if (this.options.click) {
      this.view.addEventListener("click", (_, item) => item?.datum && this.options.click(item.datum));
    }
    this.view.run();
  }

  refresh(rows) {
    if (rows !== this.rows) this.view.data("rows", rows);
    this.rows = rows;
    this.set(this.options.signals?.() ?? {});
    this.view.run();
  }

  set(signals) {
    for (const [name, value] of Object.entries(signals)) this.view.signal(name, value);
  }
}

// Shows what `tip` says about the mark under the pointer.
function pointAt(view, tip) {
  view.addEventListener("pointermove", (event, item) => {
    const said = item?.datum && tip(item.datum);
    if (said) showTip(event, said);
    else hideTip();
  });
  view.addEventListener("pointerout", hideTip);
}

function showTip(event, nodes) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...[nodes].flat());
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
  const top = event.clientY + 16 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// What marks and colours mean: entries of a mark, a label and a colour.
function legend(name, entries) {
  const entry = ([mark, label, colour]) =>
    coloured(element("li", {}, element("span", { class: "mark", "aria-hidden": "true" }, mark), plain(label)), colour);
  return element("ul", { class: "legend", "aria-label": name }, entries.map(entry));
}

// The groups with their colours and shapes, as the figures have them.
function groupLegend(groups) {
  const shapes = { square: "■", circle: "●", "triangle-up": "▲", diamond: "◆" };
  return legend("Groups", groups.map((group) => [shapes[group.shape], group.label, groupColour(group)]));
}

function runLegend(runs) {
  return legend("Runs", runs.map((run, place) => ["━", run.label, runColour(place)]));
}

// What is missing, and the command that makes it.
function missingNotice(line) {
  const parts = String(line).split("`");
  return element(
    "p",
    { class: "missing" },
    parts.map((part, place) => (place % 2 ? element("code", {}, ...shown(part)) : element("span", {}, ...shown(part)))),
  );
}

const groupNamed = (set, name) => set.groups.find((group) => group.name === name);
const groupDomain = (set) => ({
  domain: set.groups.map((group) => group.name),
  range: set.groups.map(groupColour),
});
const shapeDomain = (set) => ({
  domain: set.groups.map((group) => group.name),
  range: set.groups.map((group) => group.shape),
});

function tag(set, name) {
  const group = groupNamed(set, name);
  return coloured(element("span", { class: "tag" }, plain(group?.label ?? name)), group ? groupText(group) : "");
}
