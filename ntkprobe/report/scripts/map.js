// The full map of pairs: a cell a pair, rows observed, columns updated; zoom, pointer and keys.

// Where the prompts stand on the axes: positions in the kernel of a run.
function axisOrder(set, run, order, step) {
  const { kernel, refusal } = run;
  if (order === "file") {
    const groups = kernel.prompts.map((prompt) => set.groups.findIndex((one) => one.name === set.prompts.group[prompt]));
    return kernel.prompts.map((_, place) => place).sort((a, b) => groups[a] - groups[b] || a - b);
  }
  if (order === "refusal" && refusal) {
    const place = placeOfStep(refusal.steps, step);
    const value = (position) => at(refusal.probability, place, kernel.prompts[position]);
    const group = (position) => set.prompts.group[kernel.prompts[position]];
    const rank = (position) => set.groups.findIndex((one) => one.name === group(position));
    return [...kernel.order].sort((a, b) => rank(a) - rank(b) || value(b) - value(a));
  }
  return kernel.order;
}

// Returns where each group begins and ends on an axis.
function groupSpans(set, run, order) {
  const spans = [];
  order.forEach((position, place) => {
    const name = set.prompts.group[run.kernel.prompts[position]];
    if (spans.at(-1)?.name === name) spans.at(-1).end = place + 1;
    else spans.push({ name, start: place, end: place + 1 });
  });
  return spans;
}

function channels(colour) {
  const value = parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

// Returns 256 colours between those of a scale.
function ramp(colours) {
  const stops = colours.map(channels);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((c, k) => Math.round(c + (stops[low + 1][k] - c) * (place - low)));
  });
}

class PairMap {
  // `options`: set, run, chosen(observed, updated), pointed(event, observed, updated) or null.
  constructor(options) {
    Object.assign(this, options);
    this.picture = document.createElement("canvas");
    this.place = element("div", {
      class: "chart map",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "map of pairs",
      onkeydown: (event) => this.key(event),
    });
    this.cursor = [0, 0];
  }

  spec(size) {
    const { text, paper } = ink();
    const bar = (axis) => {
      const other = axis === "x" ? "y" : "x";
      return {
        type: "rect",
        from: { data: "spans" },
        encode: {
          update: {
            [axis]: { scale: axis, field: "from", offset: 0.5 },
            [`${axis}2`]: { scale: axis, field: "to", offset: -0.5 },
            [other]: { value: -8 },
            [`${other}2`]: { value: -2 },
            fill: { field: "colour" },
          },
        },
      };
    };
    const name = (axis) => ({
      type: "text",
      from: { data: "spans" },
      encode: {
        update: {
          [axis]: { scale: axis, signal: "(datum.from + datum.to) / 2" },
          [axis === "x" ? "y" : "x"]: { value: -12 },
          text: { field: "label" },
          fill: { field: "ink" },
          fontSize: { value: 11.5 },
          angle: { value: axis === "x" ? 0 : -90 },
          align: { value: "center" },
          baseline: { value: "bottom" },
        },
      },
    });
    const box = (data, stroke, width) => ({
      type: "rect",
      from: { data },
      encode: {
        update: {
          x: { scale: "x", field: "x0" },
          x2: { scale: "x", field: "x1" },
          y: { scale: "y", field: "y0" },
          y2: { scale: "y", field: "y1" },
          stroke: { value: stroke },
          strokeWidth: { value: width },
          fill: { value: "transparent" },
        },
      },
    });
    return {
      background: null,
      padding: { left: 30, top: 30, right: 4, bottom: 4 },
      width: size,
      height: size,
      autosize: "none",
      signals: [{ name: "domain", value: [0, 1, 0, 1] }, { name: "count", value: 1 }, { name: "picture", value: null }],
      data: ["spans", "edges", "cursor", "pair", "brush"].map((one) => ({ name: one, values: [] })),
      scales: [
        { name: "x", type: "linear", domain: { signal: "[domain[0], domain[1]]" }, range: [0, size], zero: false, nice: false },
        { name: "y", type: "linear", domain: { signal: "[domain[2], domain[3]]" }, range: [0, size], zero: false, nice: false },
      ],
      marks: [
        {
          type: "group",
          clip: true,
          encode: { update: { width: { value: size }, height: { value: size } } },
          marks: [
            {
              type: "image",
              encode: {
                update: {
                  image: { signal: "picture" },
                  aspect: { value: false },
                  smooth: { value: false },
                  align: { value: "left" },
                  baseline: { value: "top" },
                  x: { scale: "x", value: 0 },
                  y: { scale: "y", value: 0 },
                  width: { signal: "scale('x', count) - scale('x', 0)" },
                  height: { signal: "scale('y', count) - scale('y', 0)" },
                },
              },
            },
            {
              type: "rule",
              from: { data: "edges" },
              encode: { update: { x: { scale: "x", field: "x0" }, x2: { scale: "x", field: "x1" }, y: { scale: "y", field: "y0" }, y2: { scale: "y", field: "y1" }, stroke: { value: paper }, strokeWidth: { value: 2 } } },
            },
            box("pair", "#d81b60", 2.5),
            box("cursor", text, 1.5),
            box("brush", "#d81b60", 1.5),
          ],
        },
        bar("x"),
        bar("y"),
        name("x"),
        name("y"),
      ],
    };
  }

  get count() {
    return this.run.kernel.prompts.length;
  }

  get domain() {
    const [x0, x1, y0, y1] = state.zoom ?? [0, this.count, 0, this.count];
    const whole = [0, this.count, 0, this.count];
    return x1 <= this.count && y1 <= this.count && x0 < x1 && y0 < y1 ? [x0, x1, y0, y1] : whole;
  }

  update(limit) {
    const width = Math.min(this.place.clientWidth || 300, 620);
    const size = Math.max(160, width - 36);
    const key = `${theme()} ${size}`;
    if (key !== this.made) {
      this.view?.finalize();
      this.view = runView(this.spec(size), this.place, "canvas");
      this.size = size;
      this.made = key;
      this.listen();
    }
    this.order = axisOrder(this.set, this.run, state.order, theStep());
    this.step = placeOfStep(this.run.kernel.steps, theStep());
    this.paint(limit);
    this.frame();
    this.view.signal("count", this.count).signal("domain", this.domain);
    this.view.data("pair", this.boxOfPair());
    this.view.run();
  }

  paint(limit) {
    const { count, order, run: of, step } = this;
    const picture = document.createElement("canvas");
    picture.width = picture.height = count;
    const context = picture.getContext("2d");
    const image = context.createImageData(count, count);
    const colours = ramp(mapColours());
    const values = of.kernel.similarity.data;
    for (let row = 0, i = 0; row < count; row++) {
      const start = (step * count + order[row]) * count;
      for (let column = 0; column < count; column++, i += 4) {
        const value = values[start + order[column]];
        if (Number.isNaN(value)) continue;
        const colour = colours[Math.max(0, Math.min(255, Math.round((value / limit) * 255)))];
        for (let k = 0; k < 3; k++) image.data[i + k] = colour[k];
        image.data[i + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    this.view.signal("picture", picture);
  }

  // Groups along the axes and the lines between them, as far as they are in sight.
  frame() {
    const spans = groupSpans(this.set, this.run, this.order);
    const [x0, x1, y0, y1] = this.domain;
    const square = x0 === y0 && x1 === y1;
    const [low, high] = square ? [x0, x1] : [Math.max(x0, y0), Math.min(x1, y1)];
    const seen = spans
      .map((span) => ({ ...span, from: Math.max(span.start, low), to: Math.min(span.end, high) }))
      .filter((span) => span.from < span.to);
    this.view.data(
      "spans",
      seen.map(({ name, from, to }) => {
        const group = groupNamed(this.set, name);
        return { from, to, label: plain(group.short), colour: groupColour(group), ink: groupText(group) };
      }),
    );
    const ends = spans.slice(1).map((span) => span.start);
    const whole = this.count;
    this.view.data("edges", [
      ...ends.map((end) => ({ x0: end, x1: end, y0: 0, y1: whole })),
      ...ends.map((end) => ({ y0: end, y1: end, x0: 0, x1: whole })),
    ]);
  }

  boxOfPair() {
    if (!state.pair) return [];
    const places = state.pair.map((prompt) => this.order.indexOf(this.run.kernel.prompts.indexOf(prompt)));
    return places.includes(-1) ? [] : [this.box(places[0], places[1])];
  }

  box(row, column) {
    return { x0: column, x1: column + 1, y0: row, y1: row + 1 };
  }

  // Returns the row and column under a pointer, or null outside the map.
  cell(event) {
    const canvas = this.place.querySelector("canvas");
    const bounds = canvas.getBoundingClientRect();
    const scale = bounds.width / (this.size + 34);
    const x = (event.clientX - bounds.left) / scale - 30;
    const y = (event.clientY - bounds.top) / scale - 30;
    if (x < 0 || y < 0 || x >= this.size || y >= this.size) return null;
    const [x0, x1, y0, y1] = this.domain;
    return [y0 + (y / this.size) * (y1 - y0), x0 + (x / this.size) * (x1 - x0)];
  }

  listen() {
    const canvas = this.place.querySelector("canvas");
    canvas.addEventListener("pointerdown", (event) => {
      this.start = this.cell(event);
    });
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerleave", () => {
      this.start = null;
      this.show("brush", []);
      this.show("cursor", []);
      hideTip();
    });
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("dblclick", () => change({ zoom: null }));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  show(data, rows) {
    this.view.data(data, rows).run();
  }

  move(event) {
    const cell = this.cell(event);
    if (!cell) return;
    const [row, column] = cell.map(Math.floor);
    if (this.start && this.isDragged(cell)) {
      hideTip();
      this.show("brush", [this.brushed(cell)]);
      return;
    }
    if (row === this.cursor[0] && column === this.cursor[1] && event.pointerType !== "touch") {
      this.pointed(event, ...this.prompts(row, column));
      return;
    }
    this.cursor = [row, column];
    this.show("cursor", [this.box(row, column)]);
    this.pointed(event, ...this.prompts(row, column));
  }

  isDragged(cell) {
    return Math.max(...cell.map((one, axis) => Math.abs(one - this.start[axis]))) >= 1.5;
  }

  brushed(cell) {
    const [rows, columns] = cell.map((one, axis) => [one, this.start[axis]].sort((a, b) => a - b));
    return { y0: Math.floor(rows[0]), y1: Math.ceil(rows[1]), x0: Math.floor(columns[0]), x1: Math.ceil(columns[1]) };
  }

  release(event) {
    const cell = this.cell(event);
    if (cell && this.start && this.isDragged(cell)) {
      const { x0, x1, y0, y1 } = this.brushed(cell);
      change({ zoom: [x0, x1, y0, y1] });
    } else if (cell && this.start) this.chosen(...this.prompts(...cell.map(Math.floor)));
    this.start = null;
    this.show("brush", []);
  }

  // The page scrolls as ever; with Ctrl or Shift held, the wheel zooms.
  wheel(event) {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const cell = this.cell(event);
    if (cell) this.zoom(event.deltaY + event.deltaX > 0 ? 1.5 : 1 / 1.5, cell);
  }

  zoom(factor, [row, column] = this.middle()) {
    const [x0, x1, y0, y1] = this.domain;
    const ends = (low, high, centre) => {
      const span = Math.min(this.count, Math.max(4, Math.round((high - low) * factor)));
      const start = Math.round(centre - ((centre - low) / (high - low)) * span);
      const first = Math.max(0, Math.min(this.count - span, start));
      return [first, first + span];
    };
    const zoom = [...ends(x0, x1, column), ...ends(y0, y1, row)];
    const all = zoom[1] - zoom[0] === this.count && zoom[3] - zoom[2] === this.count;
    change({ zoom: all ? null : zoom });
  }

  middle() {
    const [x0, x1, y0, y1] = this.domain;
    return [(y0 + y1) / 2, (x0 + x1) / 2];
  }

  prompts(row, column) {
    const { kernel } = this.run;
    return [kernel.prompts[this.order[row]], kernel.prompts[this.order[column]]];
  }

  // Arrows move over the cells, Enter chooses one, + and − zoom, 0 shows all.
  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (moves[event.key]) {
      this.cursor = this.cursor.map((one, axis) => Math.max(0, Math.min(this.count - 1, one + moves[event.key][axis])));
      this.show("cursor", [this.box(...this.cursor)]);
      this.pointed(null, ...this.prompts(...this.cursor));
    } else if (event.key === "Enter" || event.key === " ") this.chosen(...this.prompts(...this.cursor));
    else if (event.key === "+") this.zoom(1 / 1.5, this.cursor);
    else if (event.key === "-") this.zoom(1.5, this.cursor);
    else if (event.key === "0") change({ zoom: null });
    else return;
    event.preventDefault();
  }
}
