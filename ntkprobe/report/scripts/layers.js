// Layers: which parts of the model tie two groups, at the chosen step and along training.

const PART_KINDS = { mlp: "MLP", embed: "embedding", "embed+head": "embedding", norm: "norms", attention: "attention", norms: "norms", head: "head" };
const BETWEEN = "seemingly_toxic<toxic";

class LayersView {
  constructor(set) {
    this.set = set;
    this.runs = set.runs.filter((run) => run.layers);
    const lacking = set.runs.filter((run) => !run.layers);
    this.bars = this.runs.map((run) => this.barPicture(run));
    this.times = this.runs.map((run) => this.timePicture(run));
    this.node = element(
      "section",
      { class: "view layers" },
      element("h2", {}, "Layers"),
      this.runs.length ? element("div", { class: "tools" }, this.control()) : null,
      this.runs.length ? this.partLegend() : null,
      element("section", {}, element("h3", {}, "At this step"), element("div", { class: "row" }, this.bars.map((one) => one.node)), element("p", { class: "note" }, "K is a sum over parameters: contributions of all parts sum to the mean similarity, observed ← updated.")),
      element("section", {}, element("h3", {}, "When"), element("div", { class: "row" }, this.times.map((one) => one.node))),
      lacking.map((run) => missingNotice(run.missing.layers ?? run.missing.kernel)),
    );
  }

  control() {
    const names = this.set.groups.map((group) => group.name);
    const pairs = names.flatMap((a) => names.map((b) => [`${a}<${b}`, `${labelOf(this.set, a)} ← ${labelOf(this.set, b)}`]));
    this.choices = pairs;
    this.select = element("select", { id: "between", onchange: (event) => change({ between: event.target.value }) }, this.choices.map(([value, words]) => element("option", { value }, words)));
    return element("label", {}, "Observed ← updated ", this.select);
  }

  get between() {
    const known = (wanted) => this.choices.some(([value]) => value === wanted);
    return [state.between, BETWEEN].find(known) ?? this.choices[0][0];
  }

  partLegend() {
    const kinds = unique(this.runs.flatMap((run) => run.layers.parts.map(([, part]) => PART_KINDS[part] ?? part)));
    return legend("Parts", kinds.map((kind) => ["■", kind, PART_COLOURS[theme()][kind] ?? ""]));
  }

  // Returns the mean contribution of every part at every step between the two groups chosen.
  contributions(layers) {
    this.kept ??= new Map();
    const key = `${this.runs.findIndex((run) => run.layers === layers)} ${this.between}`;
    if (!this.kept.has(key))
      this.kept.set(key, layers.steps.map((_, place) => layers.parts.map((__, part) => this.mean(layers, place, part))));
    return this.kept.get(key);
  }

  contribution(layers, place, part) {
    return this.contributions(layers)[place][part];
  }

  mean(layers, place, part) {
    const [observed, updated] = this.between.split("<").map((name) => layers.names.indexOf(name));
    return observed < 0 || updated < 0 ? NaN : at(layers.groups, place, part, observed, updated);
  }

  barRows(run) {
    const { layers } = run;
    const place = placeOfStep(layers.steps, theStep());
    return layers.parts.map(([where, part], i) => ({ step: layers.steps[place], place: placeName(where), part: PART_KINDS[part] ?? part, value: exact(this.contribution(layers, place, i)) }));
  }

  // One scale for all runs and steps of the pair chosen.
  reach() {
    const ends = { top: 0.001, bottom: 0 };
    for (const { layers } of this.runs)
      layers.steps.forEach((_, place) => {
        const up = {};
        const down = {};
        layers.parts.forEach(([where], i) => {
          const value = this.contribution(layers, place, i) || 0;
          if (value > 0) up[where] = (up[where] ?? 0) + value;
          else down[where] = (down[where] ?? 0) + value;
        });
        ends.top = Math.max(ends.top, ...Object.values(up));
        ends.bottom = Math.min(ends.bottom, ...Object.values(down));
      });
    return [ends.bottom, ends.top];
  }

  barPicture(run) {
    const colours = PART_COLOURS;
    return new Picture({
      name: `layers-${plain(run.name)}`,
      title: plain(run.label),
      caption: () => {
        const rows = this.barRows(run);
        return `${plain(run.label)}, ${stepName(rows[0].step)}: sum ${number(sum(rows.map((row) => row.value ?? 0)))}`;
      },
      columns: ["step", "place", "part", "value"],
      rows: () => this.barRows(run),
      key: () => this.between,
      spec: (width) => ({
        ...FIT,
        width,
        height: 240,
        mark: { type: "bar" },
        encoding: {
          x: { field: "place", type: "nominal", sort: null, title: "layer", axis: { labelAngle: 0, labelOverlap: true } },
          y: { field: "value", type: "quantitative", title: "contribution to similarity", scale: { domain: this.reach() }, axis: { tickCount: 5 } },
          color: { field: "part", type: "nominal", scale: { domain: Object.keys(colours[theme()]), range: Object.values(colours[theme()]) }, legend: null },
        },
      }),
      label: (rows) => `Contributions of ${rows.length} parts of ${plain(run.label)}; largest: ${[...rows].sort((a, b) => b.value - a.value).slice(0, 3).map((row) => `${row.part} of ${row.place} ${number(row.value, 3)}`).join(", ")}`,
      tip: (row) => row.part && [element("p", {}, `layer ${row.place}, ${row.part}`), element("p", {}, number(row.value, 4))],
    });
  }

  timeRows(run) {
    const { layers } = run;
    const members = layers.places.map((where) => layers.parts.flatMap(([one], i) => (one === where ? [i] : [])));
    return this.contributions(layers).flatMap((values, place) =>
      layers.places.map((where, i) => ({
        step: String(layers.steps[place]),
        place: placeName(where),
        value: exact(sum(members[i].map((part) => values[part] || 0))),
      })),
    );
  }

  timePicture(run) {
    const { layers } = run;
    const rows = remembered(() => this.between, () => this.timeRows(run));
    return new Picture({
      name: `layers-by-step-${plain(run.name)}`,
      title: plain(run.label),
      note: layers.steps.length === 1 ? "Only one step was kept by layer." : null,
      columns: ["step", "place", "value"],
      rows,
      key: () => this.between,
      signals: () => ({ now: String(layers.steps[placeOfStep(layers.steps, theStep())]) }),
      spec: (width) => {
        const limit = Math.max(0.001, ...this.runs.flatMap((one) => this.timeRows(one).map((row) => row.value)));
        const x = { field: "step", type: "ordinal", sort: layers.steps.map(String), title: stepWord(), axis: { labelAngle: 0, labelOverlap: true, ...stageLabels() } };
        const y = { field: "place", type: "nominal", sort: [...layers.places].reverse().map(placeName), title: "layer", axis: { labelOverlap: true } };
        return {
          ...FIT,
          width,
          params: [{ name: "now", value: "" }],
          height: Math.max(120, Math.min(420, 18 * layers.places.length + 40)),
          layer: [
            { mark: { type: "rect" }, encoding: { x, y, color: { field: "value", type: "quantitative", title: null, scale: { domain: [0, limit], range: mapColours(), clamp: true }, legend: { gradientLength: 100, tickCount: 3 } } } },
            { transform: [{ filter: "datum.step === now" }], mark: { type: "rect", fill: null, stroke: ink().text, strokeWidth: 1 }, encoding: { x, y } },
          ],
        };
      },
      label: () => `Contribution of each layer at each step of ${plain(run.label)}`,
      tip: (row) => row.place && [element("p", {}, `layer ${row.place}, ${stepName(row.step)}`), element("p", {}, number(row.value, 4))],
      click: (row) => row.step !== undefined && change({ step: Number(row.step) }),
    });
  }

  update() {
    if (this.select) this.select.value = this.between;
    [...this.bars, ...this.times].forEach((picture) => picture.update());
  }

  get all() {
    return [...this.bars, ...this.times];
  }
}
