"""Vega-Lite, Plotly and Bokeh drawing the same map and lines: size, speed, and what they may do.

`python benchmarks/report_libraries.py` writes `report_libraries.md`, and a picture of each with
`--pictures DIR`. It needs `pip install plotly bokeh selenium` and `apt install chromium
chromium-driver`; Vega and Vega-Lite are those that the package carries. Each page is one file with
its library inside: a map of 75 × 75 pairs at one of 25 steps and nine lines over these, and another
step is shown 24 times. Each is then opened under a policy without `unsafe-eval`.
"""

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from support.headless import answered, busy, chromium, opened, what_else_ran
from support.tables import table, write

VENDOR = Path(__file__).parents[1] / "ntkprobe" / "report" / "vendor"
PROMPTS, STEPS = 75, 25
READY = "window.ready"
STRICT = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
DATA = "const data = JSON.parse(document.getElementById('data').textContent);"

VEGA = """
const text = { ast: true };
const rows = (s) => data.map[s].map((v, i) => ({ r: Math.floor(i / 75), c: i % 75, v }));
const size = { width: 560, height: 560 };
const band = (f) => ({ field: f, type: "ordinal", axis: null });
const specs = [
  { ...size, data: { name: "rows", values: rows(0) }, mark: "rect", encoding: { x: band("c"),
    y: band("r"), color: { field: "v", type: "quantitative", scale: { domain: [0, 1] } } } },
  { ...size, data: { values: data.lines.flatMap((l, g) => l.map((v, s) => ({ g, s, v }))) },
    mark: { type: "line", point: true }, encoding: { x: { field: "s", type: "quantitative" },
    y: { field: "v", type: "quantitative" }, color: { field: "g", type: "nominal" } } }];
const views = specs.map((spec, i) => new vega.View(
  vega.parse(vegaLite.compile(spec).spec, null, { ast: true }),
  { expr: vegaInterpreter.expressionInterpreter, renderer: "canvas",
    container: document.getElementById("p" + i) }));
views.forEach((v) => v.run());
window.show = (s) => views[0].data("rows", rows(s)).run();
window.ready = true;
"""
# The map as one picture, painted cell by cell and placed by Vega, as the page does.
VEGA_PICTURE = VEGA.replace(
    "const views",
    """
const view = { ...size, padding: 5, signals: [{ name: "picture", value: null }],
  marks: [{ type: "image", encode: { update: { image: { signal: "picture" },
    smooth: { value: false }, aspect: { value: false }, width: { value: 560 },
    height: { value: 560 } } } }] };
const scheme = Array.from({ length: 256 }, (_, i) => vega.scheme("blues")(i / 255)
  .match(/\\d+/g).map(Number));
function painted(s) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 75;
  const context = canvas.getContext("2d"), image = context.createImageData(75, 75);
  data.map[s].forEach((v, i) => image.data.set([...scheme[Math.round(255 * v)], 255], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}
specs[0] = null;
const views""",
).replace(
    "vega.parse(vegaLite.compile(spec).spec,",
    "vega.parse(spec ? vegaLite.compile(spec).spec : view,",
)
VEGA_PICTURE = VEGA_PICTURE.replace(
    'window.show = (s) => views[0].data("rows", rows(s)).run();',
    'window.show = (s) => views[0].signal("picture", painted(s)).run(); show(0);',
)
PLOTLY = """
const square = (s) => Array.from({ length: 75 }, (_, r) => data.map[s].slice(75 * r, 75 * r + 75));
const layout = { width: 600, height: 600 };
const lines = data.lines.map((y) => ({ y, mode: "lines+markers" }));
window.show = (s) => Plotly.restyle("p0", { z: [square(s)] });
const map = [{ type: "heatmap", z: square(0), zmin: 0, zmax: 1 }];
Promise.all([Plotly.newPlot("p0", map, layout), Plotly.newPlot("p1", lines, layout)])
  .then(() => { window.ready = true; });
"""
BOKEH = """
const plt = Bokeh.Plotting;
const size = { width: 600, height: 600 };
const source = new Bokeh.ColumnDataSource({ data: { v: data.map[0],
  r: data.map[0].map((_, i) => Math.floor(i / 75)), c: data.map[0].map((_, i) => i % 75) } });
const mapper = new Bokeh.LinearColorMapper({ palette: Bokeh.Palettes.Blues9, low: 0, high: 1 });
const map = plt.figure(size);
map.rect({ field: "c" }, { field: "r" }, 1, 1, { source, line_color: null,
  fill_color: { field: "v", transform: mapper } });
const lines = plt.figure(size);
const steps = data.lines[0].map((_, s) => s);
data.lines.forEach((y) => { lines.line(steps, y); lines.scatter(steps, y); });
window.show = (s) => { source.data = { ...source.data, v: data.map[s] }; };
Promise.all([plt.show(map, "#p0"), plt.show(lines, "#p1")]).then(() => { window.ready = true; });
"""


def main() -> None:
    """Make the three pages, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each")
    pictures = parser.parse_args().pictures
    ran = what_else_ran()
    with TemporaryDirectory() as place, chromium(1400, 700) as driver:
        rows = [
            _measured(driver, name, library(), script, Path(place), pictures)
            for name, (library, script) in LIBRARIES.items()
        ]
    print(
        write(
            __file__,
            "# Libraries for the page of `ntkprobe report`",
            f"One map of {PROMPTS} × {PROMPTS} pairs and nine lines over {STEPS} steps, drawn with "
            "each library's own marks and defaults, and by Vega also with the map as one picture, "
            f"as the page has it; headless Chromium; {ran} Another step: median and slowest of "
            f"{STEPS - 1}, until the next picture; CPU: of the page's process, mean. By "
            "`python benchmarks/report_libraries.py`.",
            table(HEADER, rows),
            "Last column: whether the same page also draws under a content security policy that "
            "allows no text to be evaluated (`unsafe-eval`).",
        )
    )


HEADER = [
    "",
    "library, MB",
    "gzipped, MB",
    "opens in, CPU s",
    "another step, ms",
    "slowest",
    "CPU, ms",
    "without eval",
]


def _vega() -> str:
    names = ("vega.min.js", "vega-lite.min.js", "vega-interpreter.js")
    return "\n".join((VENDOR / name).read_text() for name in names)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _bokeh() -> str:
    import bokeh

    folder = Path(bokeh.__file__).parent / "server/static/js"
    return "\n".join((folder / name).read_text() for name in ("bokeh.min.js", "bokeh-api.min.js"))


LIBRARIES: dict[str, tuple[Callable[[], str], str]] = {
    "Vega-Lite": (_vega, VEGA),
    "Vega-Lite, the map one picture": (_vega, VEGA_PICTURE),
    "Plotly": (_plotly, PLOTLY),
    "Bokeh": (_bokeh, BOKEH),
}


def _measured(
    driver: Any, name: str, library: str, script: str, place: Path, pictures: Path | None
) -> list[str]:
    """Return the row of one library."""
    plain, strict = place / f"{name}.html", place / f"{name}-strict.html"
    plain.write_text(_page(library, script, ""))
    strict.write_text(_page(library, script, STRICT))
    _, cpu = opened(driver, plain, READY)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(pictures / f"{name}.png"))
    before = busy(driver)
    clock = [1000 * answered(driver, "show(arguments[0])", s)[0] for s in range(1, STEPS)]
    cpu_of_step = 1000 * (busy(driver) - before) / len(clock)
    sizes = len(library.encode()) / 1e6, len(gzip.compress(library.encode())) / 1e6
    numbers = [median(clock), max(clock), cpu_of_step]
    told = [f"{cpu:.2f}", *(f"{number:.0f}" for number in numbers)]
    return [name, *(f"{size:.2f}" for size in sizes), *told, _without_eval(driver, strict)]


def _without_eval(driver: Any, page: Path) -> str:
    """Return whether a page draws although it may not evaluate texts."""
    driver.get_log("browser")
    driver.get(f"file://{page}")
    driver.implicitly_wait(0)
    found = driver.execute_async_script(
        "const done = arguments[0]; setTimeout(() => done(Boolean(window.ready)), 3000)"
    )
    refused = [line for line in driver.get_log("browser") if "unsafe-eval" in line["message"]]
    return "yes" if found and not refused else "no"


def _page(library: str, script: str, policy: str) -> str:
    """Return one file with a library, numbers and a script."""
    generator = np.random.default_rng(0)
    told = {
        "map": generator.uniform(size=(STEPS, PROMPTS**2)).round(4).tolist(),
        "lines": generator.uniform(size=(9, STEPS)).round(4).tolist(),
    }
    header = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    inside = library.replace("</script", r"<\/script")
    places = '<div style="display:flex"><div id="p0"></div><div id="p1"></div></div>'
    return (
        f'<!doctype html><meta charset="utf-8">{header}{places}'
        f'<script type="application/json" id="data">{json.dumps(told)}</script>'
        f"<script>{inside}</script><script>(() => {{ {DATA} {script} }})();</script>"
    )


if __name__ == "__main__":
    main()
