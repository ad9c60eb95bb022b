// Benchmarks: the tables of the evaluations, and every safe prompt that was refused.

const PAGE = 25;

// A method that is called like a run has its colour, the others the next ones.
function methodColour(methods) {
  const runs = unique(index.sets.flatMap((set) => set.runs.map((run) => run.name)));
  const others = methods.filter((name) => !runs.includes(name));
  return (name) => runColour(runs.includes(name) ? runs.indexOf(name) : runs.length + others.indexOf(name));
}

function methodLegend(methods) {
  const colour = methodColour(methods);
  return legend("Models", methods.map((name) => ["━", name, colour(name)]));
}

class BenchmarksView {
  constructor() {
    const { names, tables, refused } = index.evaluations;
    this.refusedRows = rowsOf(refused);
    this.page = 0;
    this.picture = tables.some((one) => one.name === "1" && one.pictured.length) ? this.intervalPicture(tables.find((one) => one.name === "1")) : null;
    this.list = element("div", { class: "refused" });
    this.node = element(
      "section",
      { class: "view benchmarks" },
      element("h2", {}, "Benchmarks and tables"),
      names.length ? null : missingNotice("no evaluation was given: make one with `ntkprobe evaluate --model RUN/final --benchmark xstest=FILE --output-dir EVAL/NAME`, then `ntkprobe report OUT EVAL/NAME`"),
      names.length && !tables.length ? missingNotice("no answer was judged yet: `ntkprobe evaluate --model MODEL --benchmark NAME --judge xstest_prefixes --output-dir E`") : null,
      this.picture ? methodLegend(this.methods) : null,
      this.picture?.node,
      tables.map((one) => this.table(one)),
      names.length ? this.refusedSection() : null,
    );
  }

  table(one) {
    const cells = rowsOf(one.numbers);
    const rows = unique(cells.map((cell) => cell.row));
    const columns = unique(cells.map((cell) => cell.column));
    const found = new Map(cells.map((cell) => [JSON.stringify([cell.row, cell.column]), cell]));
    const head = element("tr", {}, [one.corner, ...columns].map((name) => element("th", { scope: "col" }, ...shown(name), one.marked.includes(name) ? " †" : "")));
    const body = rows.map((row) =>
      element("tr", {}, element("th", { scope: "row" }, ...shown(row)), columns.map((column) => this.cell(found.get(JSON.stringify([row, column]))))),
    );
    const csvColumns = Object.keys(one.numbers).filter((name) => name !== "digits");
    const made = element("table", {}, element("thead", {}, head), element("tbody", {}, body));
    return element("section", { class: "evaluated" }, element("h3", {}, one.title), element("div", { class: "table", tabindex: "0", role: "region", "aria-label": one.title }, made), csvButton(`table-${one.name}`, csvColumns, () => cells), one.notes.map((note) => element("p", { class: "note" }, ...shown(note))));
  }

  cell(cell) {
    if (!cell || cell.value === null) return element("td", { class: "number" }, "–");
    const form = (value) => number(value, cell.digits);
    const parts = [element("b", {}, form(cell.value))];
    if (cell.low !== null) parts.push(element("span", { class: "faint" }, ` [${form(cell.low)}, ${form(cell.high)}]`));
    if (cell.count !== null && cell.count < cell.of) parts.push(element("span", { class: "faint" }, ` (${cell.count} of ${cell.of})`));
    return element("td", { class: "number" }, parts);
  }

  intervalPicture(one) {
    const rows = () => rowsOf(one.numbers).filter((cell) => cell.value !== null && one.pictured.includes(cell.column)).map((cell) => ({ label: plain(cell.column, 40), run: cell.row, value: cell.value, low: cell.low, high: cell.high, count: cell.count, of: cell.of }));
    const methods = unique(rows().map((row) => row.run));
    this.methods = methods;
    return new Picture({
      name: "benchmarks",
      title: "Compliance with safe prompts, defence against unsafe ones",
      note: "95 % intervals over prompts. See the notes of the table below.",
      columns: ["label", "run", "value", "low", "high", "count", "of"],
      rows,
      spec: (width, all) => {
        const labels = unique(all.map((row) => row.label));
        const scale = { domain: methods, range: methods.map(methodColour(methods)) };
        return intervals(Math.min(width, 760), { title: "share", domain: [0, 1], format: ".0%", key: "run", scale, labels, height: 60 + labels.length * Math.max(26, 16 * methods.length) });
      },
      label: (all) => all.map((row) => `${row.run}, ${row.label}: ${number(row.value)}`).join("; "),
      tip: (row) => row.label && [element("p", {}, `${plain(row.run)}, ${row.label}`), element("p", {}, withInterval(row.value, row.low, row.high, number), ` of ${row.count} prompts`)],
    });
  }

  refusedSection() {
    const methods = unique(this.refusedRows.map((row) => row.method));
    this.method = element("select", { id: "method", onchange: (event) => this.filter({ method: event.target.value }) }, element("option", { value: "" }, "all models"), methods.map((name) => element("option", { value: name }, plain(name))));
    this.find = element("input", { type: "search", id: "find-refused", placeholder: "words of the prompt or answer", "aria-label": "Find refused prompts", oninput: (event) => this.filter({ find: event.target.value }) });
    const columns = ["method", "benchmark", "id", "type", "prompt", "answer", "verdicts"];
    return element("section", {}, element("h3", {}, "Safe prompts that were refused"), element("div", { class: "tools" }, element("label", {}, "Model ", this.method), this.find, csvButton("refused-safe-prompts", columns, () => this.chosen())), this.list);
  }

  filter(wanted) {
    this.page = 0;
    change(wanted);
  }

  chosen() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    return this.refusedRows.filter((row) => {
      const text = `${row.prompt} ${row.answer ?? ""}`.toLowerCase();
      return (!state.method || row.method === state.method) && words.every((word) => text.includes(word));
    });
  }

  fillRefused() {
    const rows = this.chosen();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    this.page = Math.min(this.page, pages - 1);
    const cells = { prompt: (row) => whole(row.prompt), answer: (row) => (row.answer === null ? "–" : whole(row.answer)) };
    const turn = (by, words, name) =>
      element("button", { type: "button", "aria-label": name, disabled: this.page + by < 0 || this.page + by >= pages, onclick: () => { this.page += by; this.fillRefused(); } }, words);
    const shownRows = rows.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.list.replaceChildren(
      element("p", { class: "note" }, `${rows.length} of ${this.refusedRows.length}; page ${this.page + 1} of ${pages} `, turn(-1, "‹", "Page before"), turn(1, "›", "Next page")),
      table(["method", "benchmark", "prompt", "answer", "verdicts"], shownRows, { cell: (row, name) => cells[name]?.(row) ?? row[name], caption: "Safe prompts that were refused" }),
    );
  }

  update() {
    this.picture?.update();
    if (!this.method) return;
    this.method.value = state.method;
    if (this.find.value !== state.find) this.find.value = state.find;
    this.fillRefused();
  }

  get all() {
    return this.picture ? [this.picture] : [];
  }
}
