// The overview: runs side by side, what was measured and how, and what to be careful about.

const acrossPairs = [
  ["seemingly_toxic", "toxic"],
  ["toxic", "seemingly_toxic"],
];
const shortOf = (set, name) => plain(groupNamed(set, name)?.short ?? name);
const labelOf = (set, name) => plain(groupNamed(set, name)?.label ?? name);

const glances = new Map();

// Returns rows `quantity, label, run, value, low, high, of, step, key` of a run at a step.
function glance(set, run, step) {
  const key = `${index.sets.indexOf(set)} ${set.runs.indexOf(run)} ${step}`;
  if (!glances.has(key)) glances.set(key, madeGlance(set, run, step));
  return glances.get(key);
}

function madeGlance(set, run, step) {
  const rows = [];
  const means = (quantity, table, steps, form, unit) => {
    if (!table) return;
    const shownStep = steps[placeOfStep(steps, step)];
    for (const group of set.groups) {
      const row = rowsOf(table).find((one) => one.step === shownStep && one.group === group.name);
      if (row) rows.push({ ...row, quantity, label: plain(group.label), key: group.name, run: run.name, form, of: `${row.prompts} ${unit}` });
    }
  };
  means("refusal rate", run.refusal?.rates, run.refusal?.steps, percent, "prompts");
  means("P(refuse)", run.refusal?.probabilities, run.refusal?.steps, number, "prompts");
  if (run.kernel) {
    const shownStep = run.kernel.steps[placeOfStep(run.kernel.steps, step)];
    const all = rowsOf(run.kernel.means).filter((row) => row.step === shownStep);
    for (const [observed, updated] of acrossPairs) {
      const row = all.find((one) => one.observed_group === observed && one.updated_group === updated);
      if (row)
        rows.push({ ...row, value: row.similarity, quantity: "similarity", key: observed, label: `${labelOf(set, observed)} ← ${labelOf(set, updated)}`, run: run.name, form: number, of: `${row.pairs} pairs` });
    }
  }
  return rows;
}

class Overview {
  constructor(set) {
    this.set = set;
    this.table = element("div");
    this.pictures = ["refusal rate", "P(refuse)", "similarity"].map((quantity) => this.intervals(quantity));
    this.node = element(
      "section",
      { class: "view overview" },
      element("h2", {}, "Overview"),
      this.cards(),
      element("h3", {}, `First ${stepWord()} and the one chosen, side by side`),
      this.table,
      runLegend(set.runs),
      element("div", { class: "row three" }, this.pictures.map((picture) => picture.node)),
      this.cautions(),
      this.settings(),
      this.missing(),
    );
  }

  rows(step) {
    return this.set.runs.flatMap((run) => glance(this.set, run, step));
  }

  intervals(quantity) {
    const rows = remembered(theStep, () =>
      this.rows(theStep())
        .filter((row) => row.quantity === quantity)
        .map(({ form, of, prompts, pairs, ...row }) => row),
    );
    const isRate = quantity === "refusal rate";
    const { runs, groups } = this.set;
    return new Picture({
      name: `overview-${quantity.replace(/\W+/g, "-")}`,
      title: quantity,
      caption: () => {
        const others = unique(rows().filter((row) => row.step !== theStep()).map((row) => `${plain(row.run)} at ${stepName(row.step)}`));
        return `${quantity}, ${stepName(theStep())}${others.length ? ` (${others.join(", ")})` : ""}`;
      },
      note:
        quantity === "similarity"
          ? "Observed ← updated; 95 % bootstrap intervals over prompts."
          : isRate
            ? "Share of generated answers that refuse; 95 % intervals (Wilson)."
            : "Mean of the summed probability of refusal phrases; 95 % bootstrap intervals.",
      columns: ["run", "quantity", "key", "label", "step", "value", "low", "high"],
      rows,
      key: () => runs.length,
      label: (all) => `${quantity} at ${stepName(theStep())}: ${all.map((row) => `${row.run}, ${row.label}: ${withInterval(row.value, row.low, row.high, isRate ? percent : number)}`).join("; ")}`,
      spec: (width, all) =>
        intervals(width, {
          title: quantity,
          domain: isRate ? [0, 1] : [0, Math.max(quantity === "similarity" ? 0.1 : 1, ...this.tops(quantity))],
          format: isRate ? ".0%" : ".1f",
          key: "run",
          scale: { domain: runs.map((run) => run.name), range: runs.map((_, place) => runColour(place)) },
          labels: unique(all.map((row) => row.label)),
          height: 60 + unique(all.map((row) => row.label)).length * Math.max(26, 16 * runs.length),
        }),
      tip: (row) => row.label && [element("p", {}, `${plain(row.run)}: ${row.label}`), element("p", {}, withInterval(row.value, row.low, row.high, isRate ? percent : number))],
    });
  }

  // The largest values of a quantity over all steps, so that the axis stays where it is.
  tops(quantity) {
    return this.set.runs.flatMap((run) => {
      const table = quantity === "similarity" ? run.kernel?.means : run.refusal?.probabilities;
      const wanted = (row) => quantity !== "similarity" || acrossPairs.some(([a, b]) => row.observed_group === a && row.updated_group === b);
      return rowsOf(table).filter(wanted).map((row) => row.high ?? row.similarity ?? row.value);
    });
  }

  cards() {
    const { set } = this;
    const steps = stepsOfSet(set);
    const counts = set.groups.map((group) => `${set.prompts.group.filter((one) => one === group.name).length} ${plain(group.label)}`);
    const inKernel = set.runs.map((run) => run.kernel?.prompts.length ?? 0);
    const cards = [
      ["Runs", set.runs.map((run) => plain(run.label)).join(", ")],
      ["Prompts", `${set.prompts.text.length}: ${counts.join(", ")}`],
      ["In the kernel", `${Math.max(...inKernel)} prompts`],
      set.stages
        ? ["Stages", steps.map(stepName).join(", ")]
        : [set.unit === "epoch" ? "Epochs" : "Steps", steps.length ? `${steps.length}, ${steps[0]} to ${steps.at(-1)}` : "none"],
    ];
    return element(
      "dl",
      { class: "cards" },
      cards.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
  }

  // Every number before and after: rows are quantities and groups, columns runs and steps.
  glanceTable() {
    const { runs } = this.set;
    const first = stepsOfSet(this.set)[0];
    const steps = unique([first, theStep()]);
    const cells = new Map();
    for (const step of steps)
      for (const row of this.rows(step)) cells.set(JSON.stringify([row.quantity, row.label, row.run, step]), row);
    const names = unique(this.rows(theStep()).map((row) => JSON.stringify([row.quantity, row.label])));
    const head = element(
      "tr",
      {},
      element("th", { scope: "col" }, "quantity"),
      element("th", { scope: "col" }, "prompts"),
      runs.flatMap((run) => steps.map((step) => element("th", { scope: "col" }, `${plain(run.label)}, ${stepName(step)}`))),
    );
    const body = names.map((key) => {
      const [quantity, label] = JSON.parse(key);
      return element(
        "tr",
        {},
        element("th", { scope: "row" }, quantity),
        element("td", {}, label),
        runs.flatMap((run) =>
          steps.map((step) => {
            const row = cells.get(JSON.stringify([quantity, label, run.name, step]));
            if (!row) return element("td", {}, "–");
            const interval = row.low === null || row.low === undefined ? null : ` [${row.form(row.low)}, ${row.form(row.high)}]`;
            const late = row.step === step ? null : ` at ${stepName(row.step)}`;
            return element("td", { class: "number", title: `of ${row.of}` }, element("b", {}, row.form(row.value)), interval && element("span", { class: "faint" }, interval), late && element("span", { class: "faint" }, late));
          }),
        ),
      );
    });
    return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Runs side by side" }, element("table", { id: "glance" }, element("thead", {}, head), element("tbody", {}, body)));
  }

  cautions() {
    return element(
      "section",
      { class: "cautions" },
      element("h3", {}, "Before you conclude"),
      element("ul", {}, this.set.cautions.concat(index.evaluations.cautions).map((line) => element("li", {}, ...shown(line)))),
    );
  }

  settings() {
    const names = this.set.runs.map((run) => plain(run.label));
    const head = element("tr", {}, element("th", { scope: "col" }, "setting"), names.map((name) => element("th", { scope: "col" }, name)));
    const rows = this.set.settings.map((row) =>
      element("tr", { class: row.differs ? "differs" : null }, element("th", { scope: "row" }, ...shown(row.name)), row.values.map((value) => element("td", {}, ...shown(value)))),
    );
    const csvRows = () => this.set.settings.map((row) => Object.fromEntries([["setting", row.name], ...this.set.runs.map((run, place) => [run.name, row.values[place]])]));
    return element(
      "details",
      { class: "settings" },
      element("summary", {}, "Settings and versions"),
      csvButton("settings", ["setting", ...this.set.runs.map((run) => run.name)], csvRows),
      element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Settings" }, element("table", {}, element("thead", {}, head), element("tbody", {}, rows))),
    );
  }

  missing() {
    const lines = this.set.runs.flatMap((run) => Object.values(run.missing));
    if (!lines.length) return null;
    return element("section", {}, element("h3", {}, "What was not measured"), lines.map(missingNotice));
  }

  update() {
    const columns = ["run", "quantity", "label", "step", "value", "low", "high", "of"];
    this.table.replaceChildren(this.glanceTable(), csvButton("overview", columns, () => unique([stepsOfSet(this.set)[0], theStep()]).flatMap((step) => this.rows(step))));
    this.pictures.forEach((picture) => {
      const isEmpty = !picture.options.rows().length;
      picture.node.hidden = isEmpty;
      if (!isEmpty) picture.update();
    });
  }

  get all() {
    return this.pictures;
  }
}
