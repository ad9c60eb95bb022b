// The page itself: views behind tabs, one step control for all, theme, blur, links, reloading.

const TITLES = { overview: "Overview", training: "Along training", prompt: "A prompt", layers: "Layers", benchmarks: "Benchmarks" };
const page = { views: {}, set: null };

function build() {
  Object.values(page.views).forEach((view) => view.all.forEach((picture) => picture.forget()));
  const set = theSet();
  page.set = set;
  page.views = {};
  document.getElementById("content").replaceChildren();
}

// Returns a view, made when it is first looked at.
function viewNamed(name) {
  const set = page.set;
  const made = {
    overview: () => set && new Overview(set),
    training: () => set && new Training(set),
    prompt: () => set && new PromptView(set),
    layers: () => set && new LayersView(set),
    benchmarks: () => new BenchmarksView(),
  };
  if (!page.views[name]) {
    const view = made[name]();
    if (!view) return null;
    view.node.id = `view-${name}`;
    view.node.setAttribute("role", "tabpanel");
    view.node.setAttribute("aria-labelledby", `tab-${name}`);
    view.node.hidden = true;
    page.views[name] = view;
    document.getElementById("content").append(view.node);
  }
  return page.views[name];
}

function available() {
  return VIEWS.filter((name) => name === "benchmarks" || index.sets.length);
}

function show() {
  if (!available().includes(state.view)) state.view = available()[0];
  const chosen = viewNamed(state.view);
  for (const [name, view] of Object.entries(page.views)) view.node.hidden = name !== state.view;
  document.querySelectorAll("[role=tab]").forEach((tab) => {
    const isChosen = tab.id === `tab-${state.view}`;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
  });
  document.documentElement.dataset.theme = theme();
  document.body.classList.toggle("blurred", state.blur);
  showStep();
  document.getElementById("blur").setAttribute("aria-pressed", String(state.blur));
  document.getElementById("theme").value = state.theme;
  chosen.update();
}

function makeTabs() {
  const tabs = document.getElementById("tabs");
  const turn = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const names = available();
    const next = names[(names.indexOf(state.view) + by + names.length) % names.length];
    change({ view: next });
    document.getElementById(`tab-${next}`).focus();
  };
  tabs.replaceChildren(
    ...available().map((name) => element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, onclick: () => change({ view: name }), onkeydown: turn }, TITLES[name])),
  );
}

function makeStepControl() {
  const place = document.getElementById("step-control");
  const steps = stepsOfSet(theSet());
  place.hidden = steps.length < 2;
  const slider = element("input", { type: "range", id: "step", min: 0, max: steps.length - 1, step: 1, "aria-label": "Step", oninput: (event) => change({ step: steps[event.target.value] }) });
  const move = (by) => {
    const next = steps.indexOf(theStep()) + by;
    if (next >= 0 && next < steps.length) change({ step: steps[next] });
  };
  const button = (words, name, by) => element("button", { type: "button", id: name.replace(" ", "-").toLowerCase(), "aria-label": name, onclick: () => move(by) }, words);
  place.replaceChildren(element("label", { for: "step" }, `${stepWord()} `, element("output", { id: "step-now", for: "step" })), button("‹", "Step before", -1), slider, button("›", "Next step", 1));
}

function showStep() {
  const steps = stepsOfSet(theSet());
  const slider = document.getElementById("step");
  if (!slider) return;
  slider.value = steps.indexOf(theStep());
  slider.setAttribute("aria-valuetext", `${stepName(theStep())}`);
  document.getElementById("step-now").textContent = theSet()?.stages ? stepName(theStep()) : theStep();
}

function makeTools() {
  const theme = element("select", { id: "theme", "aria-label": "Colours", onchange: (event) => change({ theme: event.target.value }) }, ["auto", "light", "dark"].map((name) => element("option", { value: name }, name)));
  const blur = element("button", { type: "button", id: "blur", title: "Blur toxic texts until pointed at", onclick: () => change({ blur: !state.blur }) }, "blur");
  const link = element("button", { type: "button", id: "link", title: "Copy a link that restores what is shown", onclick: copyLink }, "link");
  const print = element("button", { type: "button", id: "print", onclick: () => window.print() }, "print");
  const sets = index.sets.length < 2 ? null : element("label", {}, "prompts ", element("select", { id: "set", onchange: (event) => change({ set: Number(event.target.value), prompt: null, pair: null, zoom: null, step: null }) }, index.sets.map((set, place) => element("option", { value: place }, `set ${place + 1}: ${set.runs.map((run) => plain(run.label, 24)).join(", ")}`))));
  document.getElementById("tools").replaceChildren(...[sets, blur, theme, link, print].filter(Boolean));
}

async function copyLink() {
  const address = `${location.href.split("#")[0]}#${fragment()}`;
  try {
    await navigator.clipboard.writeText(address);
    say("Link copied");
    document.getElementById("link").textContent = "copied";
    setTimeout(() => (document.getElementById("link").textContent = "link"), 1500);
  } catch {
    // Where the clipboard is not to be had: a field to copy from.
    const field = element("input", { type: "text", readonly: true, value: address, "aria-label": "Link" });
    document.getElementById("notices").replaceChildren(element("p", { class: "notice" }, "Copy this link: ", field));
    field.select();
  }
}

function makeNotices() {
  const notices = [];
  if (index.sets.length > 1) {
    const told = index.sets.map((set, place) => `set ${place + 1} (${set.prompts.text.length}): ${set.runs.map((run) => plain(run.label)).join(", ")}`);
    notices.push(element("p", { class: "notice", id: "apart" }, `The runs were measured on different prompts and are shown apart: ${told.join("; ")}.`));
  }
  if (index.page.reload) notices.push(reloadNotice());
  document.getElementById("notices").replaceChildren(...notices);
}

// A page that is rewritten while a run is measured cannot know of it: it may ask for nothing. It
// offers to load itself again, and what is shown is in its address and stays.
function reloadNotice() {
  const seconds = index.page.reload;
  const often = element("input", { type: "checkbox", id: "reload-often", onchange: (event) => { change({ reload: event.target.checked ? seconds : 0 }); reloadLater(); } });
  often.checked = state.reload > 0;
  return element("p", { class: "notice", id: "following" }, "This run is still being measured, and this file is rewritten when a checkpoint is added. ", element("button", { type: "button", id: "reload", onclick: () => location.reload() }, "reload"), " ", element("label", {}, often, ` every ${seconds} s`));
}

let reloading = null;

function reloadLater() {
  clearTimeout(reloading);
  if (state.reload && index.page.reload) reloading = setTimeout(() => location.reload(), Math.max(5, state.reload) * 1000);
}

// Whatever a change of colours or of the width makes wrong is drawn anew.
function redraw() {
  const view = page.views[state.view];
  if (view) view.update();
}

function rebuild() {
  build();
  makeTabs();
  makeStepControl();
  makeTools();
  show();
  prepare();
}

function listen() {
  let width = innerWidth;
  let waiting = null;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 150);
  });
  const follow = () => {
    const before = state.set;
    const colours = theme();
    readFragment();
    if (state.set !== before || theme() !== colours) rebuild();
    else show();
  };
  addEventListener("hashchange", follow);
  addEventListener("popstate", follow);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  // Paper is white and narrow: everything is drawn in light colours and for its width meanwhile.
  let before = null;
  addEventListener("beforeprint", () => {
    if (before !== null) return;
    before = state.theme;
    state.theme = "light";
    document.body.classList.add("printing");
    rebuild();
  });
  addEventListener("afterprint", () => {
    if (before === null) return;
    state.theme = before;
    before = null;
    document.body.classList.remove("printing");
    rebuild();
  });
  listeners.push((wanted) => {
    if ("set" in wanted || "theme" in wanted) rebuild();
    else show();
    if ("view" in wanted) scrollTo(0, 0);
  });
}

// Views that were not looked at yet are drawn while the browser has nothing else to do.
function prepare() {
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
  const names = available().filter((name) => !page.views[name]);
  if (names.length) idle(() => { drawAhead(viewNamed(names[0])); prepare(); });
  else idle(() => loadLarge().then(() => { document.body.dataset.drawn = "yes"; }));
}

// Draws a view out of sight, as wide as it will be.
function drawAhead(view) {
  const { node } = view;
  if (!node.hidden) return;
  node.style.width = `${page.views[state.view].node.clientWidth}px`;
  node.classList.add("ahead");
  node.hidden = false;
  view.update();
  node.hidden = true;
  node.classList.remove("ahead");
  node.style.width = "";
}

async function start() {
  if (!window.DecompressionStream) {
    document.getElementById("content").append(element("p", { class: "notice" }, "This browser is too old for this page: it lacks DecompressionStream (Chrome 80, Firefox 113, Safari 16.4)."));
    return;
  }
  readFragment();
  makeNotices();
  await loadSmall();
  rebuild();
  listen();
  reloadLater();
  document.body.dataset.ready = "yes";
}

start();
