// One pair of prompts: both texts, its similarity along the runs, and the layers that it lies in.

// Returns a link to a prompt's own view.
function promptLink(set, prompt, length = 90) {
  const group = set.prompts.group[prompt];
  return element("a", { href: "#", class: "prompt-link", onclick: (event) => { event.preventDefault(); change({ view: "prompt", prompt }); } }, brief(set.prompts.text[prompt], group, length));
}

// Returns the contributions of the places to one pair, at the nearest step kept; null without any.
function layersOfPair(run, observed, updated, step) {
  const { layers, kernel } = run;
  if (!layers?.pairs_by_place.data) return null;
  const places = [observed, updated].map((prompt) => kernel.prompts.indexOf(prompt));
  if (places.includes(-1)) return null;
  const kept = placeOfStep(layers.pair_steps, step);
  const values = layers.places.map((_, place) => at(layers.pairs_by_place, kept, place, ...places));
  return values.every(Number.isNaN) ? null : { step: layers.pair_steps[kept], values };
}

const placeName = (place) => ({ "embed+head": "embed+head", norm: "final norm" })[place] ?? place;

class PairPanel {
  constructor(set) {
    this.set = set;
    this.texts = element("div", { class: "pair-texts" });
    this.along = this.alongPicture();
    this.byLayer = this.layerPicture();
    this.noLayers = element("div");
    this.notMeasured = element("p", { class: "note" }, "One of these prompts is not among those of the kernel: measure more with --per-group.");
    this.node = element(
      "section",
      { class: "pair", id: "pair", "aria-label": "The chosen pair" },
      element("h3", {}, "The chosen pair"),
      this.texts,
      runLegend(set.runs),
      element("div", { class: "row" }, element("div", {}, this.along.node, this.notMeasured), element("div", {}, this.byLayer.node, this.noLayers)),
    );
  }

  alongPicture() {
    const rows = remembered(() => String(state.pair), () => {
      if (!state.pair) return [];
      const [observed, updated] = state.pair;
      const line = (run, a, b, direction) => {
        const places = [a, b].map((prompt) => run.kernel.prompts.indexOf(prompt));
        if (places.includes(-1)) return [];
        return run.kernel.steps.map((step, place) => ({ step, run: run.name, direction, value: exact(at(run.kernel.similarity, place, ...places)) }));
      };
      return this.set.runs
        .filter((run) => run.kernel)
        .flatMap((run) => [...line(run, observed, updated, "x′ ← x"), ...line(run, updated, observed, "x ← x′")]);
    });
    return new Picture({
      name: "pair-along-training",
      title: "Similarity along training",
      columns: ["run", "direction", "step", "value"],
      rows,
      spec: (width) => runLines(width, this.set.runs, { title: "similarity", dash: "direction" }),
      signals: () => ({ step: theStep(), top: Math.max(0.1, ...rows().map((row) => row.value)) }),
      label: (all) => `Similarity of the pair along training, ${all.length} numbers in the table`,
      tip: (row) => row.run && [element("p", {}, `${plain(row.run)}, ${stepName(row.step)}, ${row.direction}`), element("p", {}, number(row.value, 3))],
    });
  }

  layerPicture() {
    const rows = () =>
      this.set.runs.flatMap((run) => {
        const found = state.pair && layersOfPair(run, ...state.pair, theStep());
        if (!found) return [];
        return found.values.map((value, place) => ({ run: run.name, step: found.step, place: placeName(run.layers.places[place]), value: Number.isNaN(value) ? null : value }));
      });
    return new Picture({
      name: "pair-by-layer",
      title: "By layer",
      caption: () => `By layer, ${stepName(rows()[0]?.step ?? theStep())}`,
      note: "Contributions sum to the similarity; kept to 1 in 32,767 of the largest.",
      columns: ["run", "step", "place", "value"],
      rows,
      spec: (width) => ({
        ...FIT,
        width,
        height: 200,
        mark: { type: "bar" },
        encoding: {
          x: { field: "place", type: "nominal", sort: null, title: "layer", axis: { labelAngle: 0, labelOverlap: true } },
          xOffset: { field: "run", type: "nominal", sort: null },
          y: { field: "value", type: "quantitative", title: "contribution", axis: { tickCount: 5 } },
          color: { field: "run", type: "nominal", scale: { domain: this.set.runs.map((run) => run.name), range: this.set.runs.map((_, place) => runColour(place)) }, legend: null },
        },
      }),
      label: (all) => `Contributions of ${all.length} layers and runs to the pair's similarity`,
      tip: (row) => row.place && [element("p", {}, `${plain(row.run)}, layer ${row.place}`), element("p", {}, number(row.value, 4))],
    });
  }

  update() {
    this.node.hidden = !state.pair || state.pair.some((prompt) => prompt >= this.set.prompts.text.length);
    if (this.node.hidden) return;
    const [observed, updated] = state.pair;
    const { text, group } = this.set.prompts;
    const side = (name, prompt) =>
      element(
        "div",
        {},
        element("p", { class: "side" }, `${name} `, tag(this.set, group[prompt]), " ", element("button", { type: "button", class: "plain", onclick: () => change({ view: "prompt", prompt }) }, "see this prompt")),
        whole(text[prompt], group[prompt]),
      );
    this.texts.replaceChildren(side("observed x′", observed), side("updated x", updated), element("button", { type: "button", onclick: () => change({ pair: [updated, observed] }) }, "swap"));
    const isMeasured = this.along.options.rows().length > 0;
    this.along.node.hidden = !isMeasured;
    this.notMeasured.hidden = isMeasured;
    if (isMeasured) this.along.update();
    const rows = this.byLayer.options.rows();
    const lacking = this.set.runs.map((run) => run.missing.layers).filter(Boolean);
    this.byLayer.node.hidden = !rows.length;
    this.noLayers.replaceChildren(...(rows.length ? [] : lacking.length ? lacking.map(missingNotice) : [element("p", { class: "note" }, "No layers were kept for this pair.")]));
    if (rows.length) this.byLayer.update();
    else if (this.set.runs.some((run) => run.layers && !run.layers.pairs_by_place.data)) loadLarge().then(() => this.update());
  }

  get all() {
    return [this.along, this.byLayer];
  }
}
