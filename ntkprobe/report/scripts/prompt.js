// One prompt: how it came to be refused, what it is near to, and which training pairs pushed it.

const NEAREST = 4;
const MATCHES = 40;

class PromptView {
  constructor(set) {
    this.set = set;
    this.search = new PromptSearch(set);
    this.head = element("div", { class: "prompt-head" });
    this.refusal = this.refusalPicture();
    this.groups = set.runs.filter((run) => run.kernel).map((run) => this.groupPicture(run));
    this.nearest = element("div", { class: "row" });
    this.tokens = element("div", { class: "row" });
    this.pushes = element("div", { class: "row" });
    this.answers = element("div");
    const notes = (key) => set.runs.map((run) => run.missing[key]).filter(Boolean).map(missingNotice);
    this.node = element(
      "section",
      { class: "view prompt" },
      element("h2", {}, "A prompt"),
      this.search.node,
      this.head,
      element("section", {}, element("h3", {}, "P(refuse) along training"), runLegend(set.runs), this.refusal.node, notes("refusal")),
      element("section", {}, element("h3", {}, "Similarity to the groups"), element("p", { class: "note" }, "The prompt as x′, mean over the other prompts of each group."), groupLegend(set.groups), element("div", { class: "row" }, this.groups.map((one) => one.node)), notes("kernel")),
      element("section", {}, element("h3", {}, "Nearest prompts of each group"), this.nearest, notes("layers")),
      element("section", {}, element("h3", {}, "Training pairs that pushed it"), element("p", { class: "note" }, "Change of log P(refuse) per unit step of gradient descent on the pair, to first order; positive: towards refusal."), this.pushes, notes("pushes")),
      element("section", {}, element("h3", {}, "Tokens that its kernel reads"), this.tokens, notes("tokens")),
      element("section", {}, element("h3", {}, "Answers that were kept"), this.answers),
    );
  }

  get prompt() {
    const wanted = state.prompt ?? this.firstRefused();
    return wanted < this.set.prompts.text.length ? wanted : 0;
  }

  // Without a choice: the seemingly toxic prompt that is refused most at the end.
  firstRefused() {
    const { group } = this.set.prompts;
    const run = this.set.runs.find((one) => one.refusal);
    const measured = this.set.runs.find((one) => one.kernel)?.kernel.prompts ?? group.map((_, prompt) => prompt);
    const candidates = measured.filter((prompt) => group[prompt] === "seemingly_toxic");
    if (!run || !candidates.length) return candidates[0] ?? measured[0] ?? 0;
    const last = run.refusal.steps.length - 1;
    const value = (prompt) => at(run.refusal.probability, last, prompt) || 0;
    return candidates.reduce((best, prompt) => (value(prompt) > value(best) ? prompt : best));
  }

  refusalPicture() {
    const { runs } = this.set;
    const words = { 0: "no", 1: "yes", 255: "not answered" };
    const rows = remembered(() => this.prompt, () =>
      runs
        .filter((run) => run.refusal)
        .flatMap((run) =>
          run.refusal.steps.map((step, place) => {
            const refuses = at(run.refusal.refuses, place, this.prompt);
            const value = at(run.refusal.probability, place, this.prompt);
            return { run: run.name, step, value: exact(value), refuses: words[refuses], filled: refuses === 1 };
          }),
        ),
    );
    return new Picture({
      name: "prompt-refusal",
      title: "P(refuse)",
      note: "Filled points: the generated answer refused. The sum over phrases can exceed 1.",
      columns: ["run", "step", "value", "refuses"],
      rows,
      spec: (width) => runLines(width, runs, { title: "P(refuse)", format: ".1f", height: 220 }),
      signals: () => ({ step: theStep(), top: Math.max(1, ...rows().map((row) => row.value)) }),
      label: (all) => `P(refuse) of the prompt: ${runs.map((run) => `${plain(run.label)} ends at ${number(all.filter((row) => row.run === run.name).at(-1)?.value)}`).join(", ")}`,
      tip: (row) => row.run && [element("p", {}, `${plain(row.run)}, ${stepName(row.step)}`), element("p", {}, `P(refuse) ${number(row.value, 3)}; answer refuses: ${row.refuses}`)],
      click: (row) => row.step !== undefined && change({ step: row.step }),
    });
  }

  // Returns the other prompts of the kernel with their similarity to this one, the nearest first.
  neighbours(run, step) {
    const { kernel } = run;
    const row = kernel.prompts.indexOf(this.prompt);
    if (row < 0) return null;
    const place = placeOfStep(kernel.steps, step);
    return kernel.prompts
      .map((prompt, column) => ({ prompt, column, group: this.set.prompts.group[prompt], similarity: at(kernel.similarity, place, row, column) }))
      .filter((one) => one.prompt !== this.prompt && !Number.isNaN(one.similarity))
      .sort((a, b) => b.similarity - a.similarity);
  }

  groupPicture(run) {
    const { set } = this;
    const rows = remembered(() => this.prompt, () =>
      run.kernel.steps.flatMap((step) => {
        const near = this.neighbours(run, step) ?? [];
        return set.groups.flatMap((group) => {
          const values = near.filter((one) => one.group === group.name).map((one) => one.similarity);
          return values.length ? [{ step, group: group.name, value: exact(sum(values) / values.length), prompts: values.length }] : [];
        });
      }),
    );
    return new Picture({
      name: `prompt-groups-${plain(run.name)}`,
      title: plain(run.label),
      columns: ["step", "group", "value", "prompts"],
      rows,
      spec: (width) => groupLines(set, width, { title: "mean similarity", band: false }),
      signals: () => ({ step: theStep(), top: this.top }),
      label: () => `Mean similarity of the prompt to each group along ${plain(run.label)}`,
      tip: (row) => row.group && [element("p", {}, tag(set, row.group), ` ${stepName(row.step)}`), element("p", {}, `${number(row.value, 3)}, mean of ${row.prompts}`)],
      click: (row) => row.step !== undefined && change({ step: row.step }),
    });
  }

  fillHead() {
    const { text, group, tokens } = this.set.prompts;
    const { prompt } = this;
    this.head.replaceChildren(
      element("p", { class: "side" }, tag(this.set, group[prompt]), ` prompt ${prompt}, ${tokens[prompt]} tokens`),
      element("blockquote", {}, whole(text[prompt], group[prompt])),
    );
  }

  fillNearest() {
    const { set } = this;
    const blocks = set.runs
      .filter((run) => run.kernel)
      .map((run) => {
        const near = this.neighbours(run, theStep());
        const step = run.kernel.steps[placeOfStep(run.kernel.steps, theStep())];
        const title = element("h4", {}, `${plain(run.label)}, ${stepName(step)}`);
        if (!near) return element("div", { class: "picture" }, title, element("p", { class: "note" }, "This prompt is not among those of the kernel: measure more with --per-group."));
        const rows = set.groups.flatMap((group) => near.filter((one) => one.group === group.name).slice(0, NEAREST));
        const strips = rows.map((one) => layersOfPair(run, this.prompt, one.prompt, step));
        const drawn = strips.flatMap((found) => (found ? found.values.filter((x) => !Number.isNaN(x)) : []));
        const reach = [Math.min(0, ...drawn), Math.max(1e-9, ...drawn)];
        const cells = {
          group: (one) => tag(set, one.group),
          prompt: (one) => promptLink(set, one.prompt, 70),
          similarity: (one) =>
            element("button", { type: "button", class: "plain", title: "see this pair", onclick: () => change({ view: "training", pair: [this.prompt, one.prompt] }) }, number(one.similarity, 3)),
          layers: (one) => {
            const found = strips[rows.indexOf(one)];
            return found ? strip(run.layers.places, found.values, reach) : "–";
          },
        };
        const columns = ["group", "prompt", "similarity", ...(strips.some(Boolean) ? ["layers"] : [])];
        const kept = strips.find(Boolean)?.step;
        const titles = { layers: kept === step ? "by layer, input left" : `by layer at ${stepName(kept)}, input left` };
        const csvRows = () => near.map((one) => ({ run: run.name, step, prompt: this.prompt, neighbour: one.prompt, group: one.group, similarity: exact(one.similarity), text: set.prompts.text[one.prompt], ...this.layerColumns(run, one.prompt, step) }));
        const csvColumns = ["run", "step", "prompt", "neighbour", "group", "similarity", "text", ...(run.layers ? ["layers_at_step", ...run.layers.places.map(placeName)] : [])];
        return element("div", { class: "picture" }, title, table(columns, rows, { titles, cell: (one, name) => cells[name](one), caption: `Nearest prompts, ${plain(run.label)}` }), csvButton(`nearest-${plain(run.name)}`, csvColumns, csvRows));
      });
    this.nearest.replaceChildren(...blocks);
  }

  layerColumns(run, other, step) {
    const found = layersOfPair(run, this.prompt, other, step);
    if (!found) return {};
    const values = found.values.map((value, place) => [placeName(run.layers.places[place]), exact(value)]);
    return { layers_at_step: found.step, ...Object.fromEntries(values) };
  }

  fillPushes() {
    const { set } = this;
    const blocks = set.runs
      .filter((run) => run.pushes)
      .map((run) => {
        const { pushes } = run;
        const row = pushes.prompts.indexOf(this.prompt);
        const place = placeOfStep(pushes.steps, theStep());
        const title = element("h4", {}, `${plain(run.label)}, ${stepName(pushes.steps[place])}`);
        const rows = row < 0 ? [] : this.pushRows(pushes, place, row);
        if (!rows.length) return element("div", { class: "picture" }, title, element("p", { class: "note" }, "No influence on this prompt was kept at this step."));
        const largest = Math.max(...rows.map((one) => Math.abs(one.change)));
        const cells = {
          change: (one) => bar(one.change, largest),
          group: (one) => tag(set, one.group),
          text: (one) => whole(one.text, one.group),
          response: (one) => whole(one.response, one.group),
        };
        const columns = ["change", "group", "text", "response"];
        const titles = { text: "training prompt", response: "its answer" };
        const csvRows = () => rows.map((one) => ({ run: run.name, step: pushes.steps[place], prompt: this.prompt, ...one }));
        return element("div", { class: "picture" }, title, this.groupPushes(pushes, pushes.steps[place]), table(columns, rows, { titles, cell: (one, name) => cells[name](one), caption: `Training pairs, ${plain(run.label)}` }), csvButton(`pushes-${plain(run.name)}`, ["run", "step", "prompt", ...columns], csvRows));
      });
    this.pushes.replaceChildren(...blocks);
  }

  pushRows(pushes, place, row) {
    const found = [];
    for (let rank = 0; rank < pushes.which.shape[2]; rank++) {
      const which = at(pushes.which, place, row, rank);
      if (which < 0) continue;
      const { group, text, response } = pushes.pairs;
      found.push({ change: exact(at(pushes.change, place, row, rank)), group: group[which], text: text[which], response: response[which] });
    }
    return found;
  }

  groupPushes(pushes, step) {
    const rows = rowsOf(pushes.groups).filter((one) => one.step === step && one.observed === this.prompt);
    return element("p", { class: "note" }, "Mean change: ", rows.flatMap((one, i) => [i ? ", " : "", tag(this.set, one.updated_group), ` ${signed(one.mean)} over ${one.size} pairs`]));
  }

  fillTokens() {
    const blocks = this.set.runs
      .filter((run) => run.tokens)
      .map((run) => {
        const { tokens } = run;
        const row = run.kernel.prompts.indexOf(this.prompt);
        const place = placeOfStep(tokens.steps, theStep());
        const texts = row < 0 ? [] : Array.from({ length: tokens.codes.shape[2] }, (_, rank) => at(tokens.codes, place, row, rank)).filter((code) => code >= 0).map((code) => tokens.texts[code]);
        const chips = texts.map((text) => element("li", {}, ...shown(text.replace(/\n/g, "⏎").replace(/ /g, "␣"))));
        return element("div", { class: "picture" }, element("h4", {}, `${plain(run.label)}, ${stepName(tokens.steps[place])}`), chips.length ? element("ol", { class: "tokens" }, chips) : element("p", { class: "note" }, "None were kept for this prompt."));
      });
    this.tokens.replaceChildren(...blocks);
  }

  fillAnswers() {
    const rows = rowsOf(this.set.answers).filter((one) => one.prompt === this.prompt);
    const group = this.set.prompts.group[this.prompt];
    if (!rows.length) {
      this.answers.replaceChildren(missingNotice(this.set.no_answers));
      return;
    }
    const cell = (one, name) => (name === "answer" ? whole(one.answer, group) : one[name]);
    this.answers.replaceChildren(table(["method", "benchmark", "answer", "verdicts"], rows, { cell, caption: "Answers" }), csvButton("answers", ["method", "benchmark", "answer", "verdicts"], () => rows));
  }

  update() {
    this.search.update(this.prompt);
    this.fillHead();
    this.refusal.node.hidden = !this.set.runs.some((run) => run.refusal);
    if (!this.refusal.node.hidden) this.refusal.update();
    const isMeasured = this.set.runs.some((run) => run.kernel?.prompts.includes(this.prompt));
    this.top = Math.max(...this.groups.flatMap((one) => one.options.rows().map((row) => row.value)), 0.1);
    this.groups.forEach((picture) => {
      picture.node.hidden = !isMeasured;
      if (isMeasured) picture.update();
    });
    this.fillNearest();
    this.fillPushes();
    this.fillTokens();
    this.fillAnswers();
    if (this.set.runs.some((run) => run.layers && !run.layers.pairs_by_place.data)) loadLarge().then(() => this.fillNearest());
  }

  get all() {
    return [this.refusal, ...this.groups];
  }
}

const SVG = "http://www.w3.org/2000/svg";

// A bar for every layer, upwards where it adds to the similarity, downwards where it takes away;
// `reach` is the lowest and the highest end of the bars on one scale.
function strip(places, values, [bottom, top]) {
  const unit = 29 / (top - bottom);
  const zero = top * unit;
  const step = Math.max(2, Math.min(12, Math.floor(180 / places.length)));
  const made = document.createElementNS(SVG, "svg");
  const all = places.map((place, i) => `${placeName(place)} ${number(values[i], 3)}`).join(", ");
  for (const [name, value] of Object.entries({ width: step * places.length, height: 30, class: "strip", role: "img", "aria-label": all })) made.setAttribute(name, value);
  const title = document.createElementNS(SVG, "title");
  title.textContent = all;
  made.append(title);
  values.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    const height = Math.abs(value) * unit;
    const bar = document.createElementNS(SVG, "rect");
    const box = { x: i * step, width: step - 1, y: value < 0 ? zero : zero - height, height };
    for (const [name, amount] of Object.entries(box)) bar.setAttribute(name, amount);
    made.append(bar);
  });
  return made;
}

// A number with a bar as long as it is large, of its sign's colour.
function bar(value, largest) {
  const line = element("span", { class: value < 0 ? "push away" : "push", "aria-hidden": "true" });
  line.style.width = `${Math.max(1, (Math.abs(value) / largest) * 60)}px`;
  return element("span", { class: "number" }, line, ` ${signed(value)}`);
}

// Finds prompts by their texts: a field with a list, by pointer or keys.
class PromptSearch {
  constructor(set) {
    this.set = set;
    this.lowered = set.prompts.text.map((text) => text.toLowerCase());
    this.list = element("ul", { role: "listbox", id: "matches", "aria-label": "Prompts found", hidden: true });
    this.field = element("input", {
      type: "search",
      id: "search",
      role: "combobox",
      placeholder: "Find a prompt by its text",
      "aria-label": "Find a prompt by its text",
      "aria-expanded": "false",
      "aria-controls": "matches",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.find(),
      onfocus: () => this.find(),
      onkeydown: (event) => this.key(event),
      onblur: () => setTimeout(() => this.close(), 150),
    });
    const step = (by) => change({ prompt: (this.now + by + set.prompts.text.length) % set.prompts.text.length });
    const button = (words, name, by) => element("button", { type: "button", "aria-label": name, onclick: () => step(by) }, words);
    this.node = element("div", { class: "search" }, element("div", { class: "field" }, this.field, this.list), element("span", { class: "buttons" }, button("‹", "Prompt before", -1), button("›", "Next prompt", 1)));
  }

  update(prompt) {
    this.now = prompt;
  }

  find() {
    const words = this.field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (let prompt = 0; prompt < this.lowered.length && found.length < MATCHES; prompt++)
      if (words.every((word) => this.lowered[prompt].includes(word))) found.push(prompt);
    this.found = found;
    this.active = -1;
    this.list.replaceChildren(
      ...found.map((prompt, i) =>
        element("li", { role: "option", id: `match-${i}`, onpointerdown: (event) => { event.preventDefault(); this.choose(prompt); } }, tag(this.set, this.set.prompts.group[prompt]), " ", brief(this.set.prompts.text[prompt], this.set.prompts.group[prompt])),
      ),
    );
    if (!found.length) this.list.replaceChildren(element("li", { class: "note" }, "No prompt has these words."));
    this.list.hidden = false;
    this.field.setAttribute("aria-expanded", "true");
  }

  key(event) {
    if (event.key === "Escape") return this.close();
    if (event.key === "Enter" && this.found?.length) return this.choose(this.found[Math.max(0, this.active)]);
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return undefined;
    event.preventDefault();
    if (this.list.hidden) this.find();
    const by = event.key === "ArrowDown" ? 1 : -1;
    this.active = (this.active + by + this.found.length) % Math.max(1, this.found.length);
    [...this.list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === this.active)));
    this.list.children[this.active]?.scrollIntoView({ block: "nearest" });
    this.field.setAttribute("aria-activedescendant", `match-${this.active}`);
    return undefined;
  }

  choose(prompt) {
    this.field.value = "";
    this.close();
    change({ view: "prompt", prompt });
  }

  close() {
    this.list.hidden = true;
    this.field.setAttribute("aria-expanded", "false");
  }
}
