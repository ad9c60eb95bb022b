// Along training: rates, probabilities and similarities by group, and the maps at the chosen step.

// The end of the maps' scale, one for all runs and steps: 99 % of pairs of different prompts are below.
function mapLimit(runs) {
  const values = [];
  for (const { kernel } of runs) {
    const count = kernel.prompts.length;
    for (const place of unique([0, kernel.steps.length - 1]))
      for (let row = 0; row < count; row++)
        for (let column = 0; column < count; column++) {
          const value = at(kernel.similarity, place, row, column);
          if (row !== column && !Number.isNaN(value)) values.push(value);
        }
  }
  values.sort((a, b) => a - b);
  const end = values[Math.floor(values.length * 0.99)] ?? 1;
  return Math.max(0.05, Math.ceil(end * 20) / 20);
}

class Training {
  constructor(set) {
    this.set = set;
    this.pictures = [];
    this.maps = [];
    this.pair = new PairPanel(set);
    const rows = [
      this.row("Refusal rate", "rates", (run) => run.refusal?.rates, (run) => this.lines(run, "rates", "answers that refuse", [0, 1], ".0%"), "Share of generated answers that refuse; bands are 95 % intervals (Wilson)."),
      this.row("P(refuse)", "refusal", (run) => run.refusal, (run) => this.lines(run, "probabilities", "P(refuse), mean", [0, this.top("probabilities")], ".1f"), "Summed probability of the refusal phrases; bands are 95 % bootstrap intervals over prompts."),
      this.row("Similarity between groups", "kernel", (run) => run.kernel, (run) => this.pairLines(run), "Observed ← updated: dashed in the observed group's colour on the updated one's. Bold: seemingly toxic ↔ toxic, with 95 % bootstrap bands over prompts."),
      this.row("Means at this step", "kernel", (run) => run.kernel, (run) => this.groupMap(run), "Pairs of different prompts."),
    ];
    this.node = element("section", { class: "view training" }, element("h2", {}, "Along training"), groupLegend(set.groups), rows, this.mapSection());
  }

  row(title, missing, has, picture, note) {
    const cells = this.set.runs.map((run) => {
      if (!has(run)) return element("div", { class: "picture" }, element("h4", {}, plain(run.label)), missingNotice(run.missing[missing] ?? run.missing.refusal ?? ""));
      const made = picture(run);
      this.pictures.push(made);
      return made.node;
    });
    return element("section", {}, element("h3", {}, title), element("div", { class: "row" }, cells), element("p", { class: "note" }, note));
  }

  // The largest end of an interval in any run: all runs have one scale.
  top(table) {
    const ends = this.set.runs.flatMap((run) => (run.refusal?.[table]?.high ?? []).concat(run.refusal?.[table]?.value ?? []));
    return Math.max(1, ...ends.filter((end) => end !== null));
  }

  topSimilarity() {
    return Math.max(0.1, ...this.set.runs.flatMap((run) => run.kernel?.means.high ?? []).filter((x) => x !== null)) * 1.02;
  }

  caption(run, steps) {
    const step = steps[placeOfStep(steps, theStep())];
    const late = step === theStep() ? "" : ` (measured last before ${stepName(theStep())})`;
    return `${plain(run.label)}, ${stepName(step)}${late}`;
  }

  lines(run, table, title, domain, format) {
    const rows = rowsOf(run.refusal[table]);
    const form = format === ".0%" ? percent : number;
    return new Picture({
      name: `${table}-${plain(run.name)}`,
      title: plain(run.label),
      columns: ["step", "group", "value", "low", "high", "prompts"],
      rows: () => rows,
      spec: (width) => groupLines(this.set, width, { title, domain, format }),
      signals: () => ({ step: theStep() }),
      label: () => {
        const steps = run.refusal.steps;
        const step = steps[placeOfStep(steps, theStep())];
        return `${title} of ${plain(run.label)} at ${stepName(step)}: ${rows.filter((row) => row.step === step).map((row) => `${labelOf(this.set, row.group)} ${form(row.value)}`).join(", ")}`;
      },
      tip: (row) => row.group && [element("p", {}, tag(this.set, row.group), ` ${stepName(row.step)}`), element("p", {}, withInterval(row.value, row.low, row.high, form), ` of ${row.prompts} prompts`)],
      click: (row) => row.step !== undefined && change({ step: row.step }),
    });
  }

  pairLines(run) {
    const bold = (row) => acrossPairs.some(([a, b]) => row.observed_group === a && row.updated_group === b);
    const rows = rowsOf(run.kernel.means).map((row) => ({
      step: row.step,
      pair: `${row.observed_group} ← ${row.updated_group}`,
      observed: row.observed_group,
      updated: row.updated_group,
      value: row.similarity,
      low: row.low ?? null,
      high: row.high ?? null,
      pairs: row.pairs,
      bold: bold(row),
    }));
    return new Picture({
      name: `similarity-${plain(run.name)}`,
      title: plain(run.label),
      columns: ["step", "observed", "updated", "value", "low", "high", "pairs"],
      rows: () => rows,
      spec: (width) => pairLines(this.set, width, { domain: [0, this.topSimilarity()] }),
      signals: () => ({ step: theStep() }),
      label: () => `Mean similarity of every ordered pair of groups along ${plain(run.label)}: ${rows.length} numbers in the table`,
      tip: (row) => row.pair && [element("p", {}, tag(this.set, row.observed), " ← ", tag(this.set, row.updated), ` ${stepName(row.step)}`), element("p", {}, withInterval(row.value, row.low, row.high, number), ` over ${row.pairs} pairs`)],
      click: (row) => row.step !== undefined && change({ step: row.step }),
    });
  }

  groupMap(run) {
    const all = rowsOf(run.kernel.means);
    const limit = Math.max(0.01, ...this.set.runs.flatMap((one) => one.kernel?.means.similarity ?? []));
    const rows = remembered(theStep, () => {
      const step = run.kernel.steps[placeOfStep(run.kernel.steps, theStep())];
      return all
        .filter((row) => row.step === step)
        .map((row) => ({ step, observed: row.observed_group, updated: row.updated_group, row: shortOf(this.set, row.observed_group), column: shortOf(this.set, row.updated_group), value: row.similarity, low: row.low, high: row.high, pairs: row.pairs }));
    });
    return new Picture({
      name: `means-${plain(run.name)}`,
      title: plain(run.label),
      caption: () => this.caption(run, run.kernel.steps),
      columns: ["step", "observed", "updated", "value", "low", "high", "pairs"],
      rows,
      spec: (width) => groupMap(this.set, Math.min(width, 400), { domain: [0, limit] }),
      label: (shownRows) => `Mean similarity, observed by updated: ${shownRows.map((row) => `${shortOf(this.set, row.observed)} from ${shortOf(this.set, row.updated)} ${number(row.value)}`).join(", ")}`,
      tip: (row) => row.pairs && [element("p", {}, tag(this.set, row.observed), " ← ", tag(this.set, row.updated)), element("p", {}, withInterval(row.value, row.low, row.high, number), ` over ${row.pairs} pairs`)],
    });
  }

  mapSection() {
    const withKernel = this.set.runs.filter((run) => run.kernel);
    if (!withKernel.length) return null;
    this.limit = mapLimit(withKernel);
    const cells = withKernel.map((run) => {
      const caption = element("figcaption");
      const map = new PairMap({
        set: this.set,
        run,
        chosen: (observed, updated) => change({ pair: [observed, updated], prompt: observed }),
        pointed: (event, observed, updated) => this.point(event, observed, updated),
      });
      this.maps.push({ map, run, caption });
      const columns = ["step", "observed", "updated", "observed_group", "updated_group", "similarity", "observed_text", "updated_text"];
      const details = element("details", { class: "numbers", ontoggle: () => this.fillPairs(details, run) }, element("summary", {}, "Table"));
      return element("figure", { class: "picture" }, caption, map.place, element("div", { class: "tools" }, csvButton(`pairs-${plain(run.name)}`, columns, () => this.pairRows(run)), details));
    });
    this.scale = element("div", { class: "scale", "aria-hidden": "true" });
    return element(
      "section",
      {},
      element("h3", {}, "Every pair of prompts"),
      element("div", { class: "tools" }, this.orderControl(), this.zoomButtons()),
      this.scale,
      element("div", { class: "row maps" }, cells),
      element("p", { class: "note" }, "A cell is a pair: row observed x′, column updated x. Drag to zoom, double-click for all; with Ctrl or Shift the wheel zooms. Click a cell for its pair. Keys: arrows, Enter, +, −, 0."),
      this.pair.node,
    );
  }

  orderControl() {
    const choices = { similarity: "similarity at the first step", file: "their order in the file", refusal: "P(refuse) at this step" };
    this.order = element(
      "select",
      { id: "order", onchange: (event) => change({ order: event.target.value, zoom: null }) },
      Object.entries(choices).map(([value, words]) => element("option", { value }, words)),
    );
    return element("label", {}, "Within a group by ", this.order);
  }

  zoomButtons() {
    const button = (words, name, action) => element("button", { type: "button", "aria-label": name, onclick: action }, words);
    const first = () => this.maps[0].map;
    return element("span", { class: "buttons" }, button("+", "Zoom in", () => first().zoom(1 / 1.5)), button("−", "Zoom out", () => first().zoom(1.5)), button("all", "Show all pairs", () => change({ zoom: null })));
  }

  similarity(run, observed, updated) {
    const { kernel } = run;
    const places = [observed, updated].map((prompt) => kernel.prompts.indexOf(prompt));
    return places.includes(-1) ? NaN : at(kernel.similarity, placeOfStep(kernel.steps, theStep()), ...places);
  }

  point(event, observed, updated) {
    const { text, group } = this.set.prompts;
    const values = this.maps.map(({ run }) => `${plain(run.label)} ${number(this.similarity(run, observed, updated), 3)}`);
    if (!event) say(`${values.join(", ")}. Observed: ${plain(text[observed])}. Updated: ${plain(text[updated])}.`);
    else
      showTip(event, [
        element("p", { class: "values" }, values.join(" · ")),
        element("p", {}, tag(this.set, group[observed]), " x′ ", brief(text[observed], group[observed], 160)),
        element("p", {}, tag(this.set, group[updated]), " x ", brief(text[updated], group[updated], 160)),
      ]);
  }

  pairRows(run) {
    const { kernel } = run;
    const { text, group } = this.set.prompts;
    const place = placeOfStep(kernel.steps, theStep());
    return kernel.prompts.flatMap((observed, row) =>
      kernel.prompts.map((updated, column) => ({
        step: kernel.steps[place],
        observed,
        updated,
        observed_group: group[observed],
        updated_group: group[updated],
        similarity: exact(at(kernel.similarity, place, row, column)),
        observed_text: text[observed],
        updated_text: text[updated],
      })),
    );
  }

  fillPairs(details, run) {
    if (!details.open) return;
    const rows = this.pairRows(run).filter((row) => row.observed !== row.updated);
    rows.sort((a, b) => b.similarity - a.similarity);
    const cell = (row, name) => (name.endsWith("_text") ? promptLink(this.set, row[name.replace("_text", "")]) : row[name]);
    const columns = ["similarity", "observed_group", "observed_text", "updated_group", "updated_text"];
    details.replaceChildren(details.firstChild, table(columns, rows, { cell, caption: `Pairs of ${plain(run.label)}, the most similar first` }));
  }

  update() {
    this.pictures.forEach((picture) => picture.update());
    if (this.maps.length) {
      this.order.value = state.order;
      this.drawScale();
    }
    for (const { map, run, caption } of this.maps) {
      caption.textContent = this.caption(run, run.kernel.steps);
      map.place.setAttribute("aria-label", `Similarity of ${map.count} × ${map.count} pairs of ${plain(run.label)}, ${stepName(theStep())}; arrow keys move, Enter chooses`);
      map.update(this.limit);
    }
    document.querySelectorAll(".map + .tools details[open]").forEach((details) => details.dispatchEvent(new Event("toggle")));
    this.pair.update();
  }

  drawScale() {
    const colours = mapColours();
    const bar = element("span", { class: "ramp" });
    bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    this.scale.replaceChildren("similarity 0 ", bar, ` ${this.limit} and more`);
  }

  get all() {
    return [...this.pictures, ...this.pair.all];
  }
}
