// What the page shows, kept in the fragment of its address: a link restores it.

const VIEWS = ["overview", "training", "prompt", "layers", "benchmarks"];
const DEFAULTS = {
  view: "overview",
  set: 0,
  step: null,
  prompt: null,
  pair: null,
  zoom: null,
  order: "similarity",
  between: null,
  method: "",
  find: "",
  blur: index.page.blur,
  theme: "auto",
  reload: 0,
};
const READERS = {
  view: (text) => (VIEWS.includes(text) ? text : null),
  set: whole_number,
  step: whole_number,
  prompt: whole_number,
  pair: whole_numbers(2),
  zoom: whole_numbers(4),
  order: (text) => (["similarity", "file", "refusal"].includes(text) ? text : null),
  between: (text) => text,
  method: (text) => text,
  find: (text) => text,
  blur: (text) => text === "1",
  theme: (text) => (["auto", "light", "dark"].includes(text) ? text : null),
  reload: whole_number,
};
const state = { ...DEFAULTS };
const listeners = [];

function whole_number(text) {
  return /^\d{1,12}$/.test(text) ? Number(text) : null;
}

function whole_numbers(count) {
  return (text) => {
    const parts = text.split(",").map(whole_number);
    return parts.length === count && !parts.includes(null) ? parts : null;
  };
}

function fragment() {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value === null || String(value) === String(DEFAULTS[name])) continue;
    words.set(name, typeof value === "boolean" ? Number(value) : String(value));
  }
  return words.toString();
}

// Reads the state from the address; what makes no sense there is left as it is by default.
function readFragment() {
  Object.assign(state, DEFAULTS);
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const value = READERS[name]?.(text);
    if (value !== null && value !== undefined) state[name] = value;
  }
}

function writeFragment(keep) {
  const wanted = `#${fragment()}`;
  if (wanted === (location.hash || "#")) return;
  try {
    if (keep) history.pushState(null, "", wanted);
    else history.replaceState(null, "", wanted);
  } catch {
    // A page inside another one may have no address of its own; it works without.
  }
}

// Changes what is shown. Another view or prompt can be gone back from.
function change(wanted) {
  const keep = "view" in wanted || "prompt" in wanted;
  Object.assign(state, wanted);
  writeFragment(keep);
  listeners.forEach((listener) => listener(wanted));
}

const theSet = () => index.sets[Math.min(state.set, index.sets.length - 1)] ?? null;
const isDark = () =>
  state.theme === "dark" ||
  (state.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);

function stepsOfSet(set) {
  return unique((set?.runs ?? []).flatMap((run) => run.steps)).sort((a, b) => a - b);
}

// Returns what a step is called: `step 5`, `epoch 5`, or the name of a stage.
function stepName(step) {
  const name = theSet()?.stages?.[step];
  return name === undefined || name === null ? `${theSet()?.unit ?? "step"} ${step}` : plain(name, 40);
}

// Returns `step`, `epoch`, or `stage` where the runs shown are named models.
const stepWord = () => (theSet()?.stages ? "stage" : (theSet()?.unit ?? "step"));

// Returns the step that is shown: the one chosen, else the last.
function theStep() {
  const steps = stepsOfSet(theSet());
  if (state.step === null) return steps.at(-1) ?? 0;
  return steps.includes(state.step) ? state.step : steps[placeOfStep(steps, state.step)];
}
