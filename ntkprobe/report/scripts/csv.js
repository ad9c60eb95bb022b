// Numbers of a picture or a table as a CSV file.

// Spreadsheets run a text that begins like a formula: such a text gets an apostrophe before it.
function csvCell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// Where steps are named stages, their names stand behind them.
function csv(columns, rows) {
  const stages = theSet()?.stages;
  const named = stages && columns.includes("step") ? columns.flatMap((name) => (name === "step" ? ["step", "stage"] : [name])) : columns;
  const cell = (row, name) => (name === "stage" && stages ? stages[row.step] : row[name]);
  const lines = [named, ...rows.map((row) => named.map((name) => cell(row, name)))];
  return lines.map((line) => line.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = element("a", { href: address, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

function csvButton(name, columns, rows) {
  return element(
    "button",
    {
      type: "button",
      class: "plain csv",
      "aria-label": `Save ${name} as CSV`,
      onclick: () => download(`${name}.csv`, csv(columns, rows())),
    },
    "CSV",
  );
}

const TABLE_ROWS = 200;

// Returns a table; a cell is a text, a number, or an element.
function table(columns, rows, { titles = {}, cell = (row, name) => row[name], caption } = {}) {
  const head = columns.map((name) => element("th", { scope: "col" }, titles[name] ?? name));
  const body = rows.slice(0, TABLE_ROWS).map((row) =>
    element(
      "tr",
      {},
      columns.map((name) => {
        const value = cell(row, name);
        const isNumber = typeof value === "number";
        const text = isNumber ? String(exact(value) ?? "–") : (value ?? "–");
        const words = typeof text === "string" ? shown(text) : [text];
        return element("td", { class: isNumber ? "number" : null }, ...words);
      }),
    ),
  );
  const made = element(
    "table",
    {},
    caption ? element("caption", {}, caption) : null,
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, body),
  );
  const rest = rows.length - TABLE_ROWS;
  const more = rest > 0 ? `The first ${TABLE_ROWS} rows; ${rest} more are in the CSV.` : null;
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": caption ?? "Numbers" }, made, more ? element("p", { class: "note" }, more) : null);
}
