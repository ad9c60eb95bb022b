// Texts of strangers, shown as they are and never as markup; elements; numbers.

// Control characters, marks that turn the direction of writing, and halves of characters.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const LONG = 700;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

// Returns a text as nodes: what cannot be seen is written out, such as U+202E.
function shown(text) {
  const nodes = [];
  let end = 0;
  for (const match of String(text).matchAll(UNSEEN)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    const code = match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.push(element("span", { class: "unseen-character" }, `U+${code}`));
    end = match.index + 1;
  }
  nodes.push(String(text).slice(end));
  return nodes;
}

// Returns a text on one line without what cannot be seen, for labels and lists.
function plain(text, length = 90) {
  const line = String(text).replace(UNSEEN, "�").replace(/\s+/g, " ").trim();
  return line.length > length ? `${[...line].slice(0, length - 1).join("")}…` : line;
}

const isToxic = (group) => group === "toxic" || group === "unsafe";

// Returns an element with a whole text; a long one at first in part, a toxic one marked as such.
function whole(text, group = "") {
  const place = element("bdi", { class: "words", dir: "auto" });
  if (isToxic(group)) toxic(place);
  const value = String(text);
  if (value.length <= LONG) {
    place.append(...shown(value));
    return place;
  }
  const first = element("span", {}, ...shown(value.slice(0, LONG)), "…");
  const more = element(
    "button",
    {
      type: "button",
      class: "plain",
      onclick: () => place.replaceChildren(...shown(value)),
    },
    `show all ${value.length.toLocaleString("en")} characters`,
  );
  place.append(first, " ", more);
  return place;
}

// Returns a short text on one line.
function brief(text, group = "", length = 90) {
  const place = element("bdi", { class: "words", dir: "auto" }, plain(text, length));
  return isToxic(group) ? toxic(place) : place;
}

// A toxic text can be blurred until it is pointed at or has the focus.
function toxic(place) {
  place.classList.add("toxic");
  return place;
}

function coloured(made, colour) {
  made.style.setProperty("--colour", colour);
  return made;
}

const number = (value, digits = 2) =>
  value === null || value === undefined || Number.isNaN(value)
    ? "–"
    : value.toFixed(digits).replace("-", "−");
const percent = (value) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : `${(100 * value).toFixed(0)} %`;
const signed = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size >= 100 ? value.toFixed(0) : value.toPrecision(3);
  return (value > 0 ? `+${text}` : text).replace("-", "−");
};
// 32-bit numbers have seven digits; more would be noise of the conversion.
const exact = (value) => (Number.isFinite(value) ? Number(value.toPrecision(7)) : null);

function say(text) {
  document.getElementById("said").textContent = text;
}
