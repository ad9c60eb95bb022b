// The numbers of the page: the index as JSON, arrays decoded from base64 when they are needed.

const index = JSON.parse(document.getElementById("index").textContent);
const ARRAYS = { f4: Float32Array, i4: Int32Array, i2: Int16Array, u1: Uint8Array };
const MISSING_INT16 = -32768;

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const decoded = atob(text);
  const bytes = new Uint8Array(decoded.length);
  for (let i = 0; i < decoded.length; i++) bytes[i] = decoded.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes of one significance lie together, which deflates better; here they go back to their places.
function regrouped(bytes, width) {
  if (width === 1) return bytes;
  const count = bytes.length / width;
  const result = new Uint8Array(bytes.length);
  for (let k = 0; k < width; k++) {
    const from = k * count;
    for (let i = 0, to = k; i < count; i++, to += width) result[to] = bytes[from + i];
  }
  return result;
}

// Decodes the array that a reference of the index names, once, and keeps it as its `data`.
function load(reference) {
  reference.loading ??= (async () => {
    const element = document.getElementById(reference.block);
    const kind = ARRAYS[reference.type];
    const bytes = regrouped(await inflated(bytesOf(element.textContent)), kind.BYTES_PER_ELEMENT);
    reference.data = new kind(bytes.buffer);
    element.remove();
    return reference;
  })();
  return reference.loading;
}

// Returns the number at a place of a decoded array; NaN where it is missing.
function at(reference, ...place) {
  let flat = 0;
  for (let axis = 0; axis < place.length; axis++) flat = flat * reference.shape[axis] + place[axis];
  const value = reference.data[flat];
  if (reference.type === "i2") return value === MISSING_INT16 ? NaN : value * reference.scale;
  return value;
}

function references(value, found = []) {
  if (Array.isArray(value)) value.forEach((item) => references(item, found));
  else if (value && typeof value === "object") {
    if (value.block) found.push(value);
    else Object.values(value).forEach((item) => references(item, found));
  }
  return found;
}

// What is kept pair by pair and layer by layer is large, and decoded when it is first looked at.
function loadSmall() {
  return Promise.all(references(index).filter((one) => one.type !== "i2").map(load));
}

function loadLarge() {
  return Promise.all(references(index).filter((one) => one.type === "i2").map(load));
}

const rowsKept = new WeakMap();

// Returns the rows of a table that is kept by column, the same ones each time.
function rowsOf(columns) {
  if (!columns) return [];
  if (!rowsKept.has(columns)) rowsKept.set(columns, madeRows(columns));
  return rowsKept.get(columns);
}

// Keeps what was computed last, for as long as its key stays.
function remembered(key, compute) {
  let last = null;
  let value;
  return () => {
    const now = key();
    if (last !== now) {
      last = now;
      value = compute();
    }
    return value;
  };
}

function madeRows(columns) {
  const names = Object.keys(columns);
  const count = names.length ? columns[names[0]].length : 0;
  return Array.from({ length: count }, (_, i) =>
    Object.fromEntries(names.map((name) => [name, columns[name][i]])),
  );
}

// Returns the place of the last measured step that is not later than `step`, or of the first one.
function placeOfStep(steps, step) {
  let place = 0;
  steps.forEach((one, i) => {
    if (one <= step) place = i;
  });
  return place;
}

const sum = (values) => values.reduce((a, b) => a + b, 0);
const unique = (values) => [...new Set(values)];
