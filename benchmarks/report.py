"""Size and speed of the page of `ntkprobe report`: 75 prompts, 25 steps, by layer, 700 answers.

`python benchmarks/report.py` writes `report.md`. It makes up a run of that size (24 layers) and an
evaluation, and opens the page in headless Chromium (`apt install chromium chromium-driver`, `pip
install selenium`). Beside the clock stands the CPU time of the page's process, which other programs
on the machine disturb less.
"""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from support.headless import answered, busy, chromium, opened, what_else_ran
from support.made_up_runs import write_evaluation, write_run
from support.tables import table, write

from ntkprobe.report import make_report

DEMO = Path(__file__).parents[1] / "figures" / "demo"
READY = "document.body.dataset.ready === 'yes'"
DRAWN = "document.body.dataset.drawn === 'yes'"  # and every view was drawn once, out of sight
OPENINGS = 5
TIMES = 7
CLICK = "document.querySelector(arguments[0]).click()"
CHOOSE = "location.hash = arguments[0]"
CLICKS = [
    ("next step, overview", "view=overview&step=0", CLICK, ["#next-step"] * TIMES),
    ("next step, along training", "view=training&step=0", CLICK, ["#next-step"] * TIMES),
    ("next step, a prompt", "view=prompt&step=0", CLICK, ["#next-step"] * TIMES),
    ("next step, layers", "view=layers&step=0", CLICK, ["#next-step"] * TIMES),
    (
        "a pair of the map",
        "view=training&pair=0,1",
        CHOOSE,
        [f"view=training&pair={i},{200 + i}" for i in range(TIMES)],
    ),
    (
        "another prompt",
        "view=prompt&prompt=100",
        CLICK,
        ["[aria-label='Next prompt']"] * TIMES,
    ),
    (
        "another view, seen before",
        "view=overview",
        CLICK,
        ["#tab-training", "#tab-prompt", "#tab-layers", "#tab-benchmarks", "#tab-overview"] * 2,
    ),
]


def main() -> None:
    """Make both pages, measure, and write the tables."""
    ran = what_else_ran()
    with TemporaryDirectory() as place:
        folder = Path(place)
        start = time.process_time()
        large = [write_run(folder / "run-ntk"), write_evaluation(folder / "one")]
        made_up = time.process_time() - start
        pages = {}
        for name, places in (("the demo's two runs", [DEMO]), ("75 × 25 × by layer", large)):
            start = time.process_time()
            page = make_report(places).save(folder / f"{len(pages)}.html")
            pages[name] = page, time.process_time() - start
        with chromium() as driver:
            sizes = [_size(driver, name, *made) for name, made in pages.items()]
            clicks = [_clicked(driver, pages["75 × 25 × by layer"][0], *c) for c in CLICKS]
    print(
        write(
            __file__,
            "# The page of `ntkprobe report`",
            f"Headless Chromium; {ran} Opening: medians of {OPENINGS}; clicks: until the next "
            "picture, median and slowest; CPU: of the page's process, all threads; by "
            f"`python benchmarks/report.py`. (Making up the data took {made_up:.0f} s.)",
            table(["", "MB", "made in, CPU s", "opens in, s", "opens in, CPU s"], sizes),
            "75 × 25 × by layer: 75 prompts in the kernel, 300 with refusals, 25 steps, 24 layers, "
            "200 training pairs, 700 answers of 300 words.",
            table(["click", "ms", "slowest", "CPU, ms (mean)"], clicks),
        )
    )


def _size(driver: Any, name: str, page: Path, seconds: float) -> list[str]:
    """Return how large a page is and how long it takes to open."""
    times = [opened(driver, page, READY) for _ in range(OPENINGS)]
    clock, cpu = (median(values) for values in zip(*times, strict=True))
    size = page.stat().st_size / 1e6
    return [name, f"{size:.1f}", f"{seconds:.1f}", f"{clock:.2f}", f"{cpu:.2f}"]


def _clicked(driver: Any, page: Path, name: str, view: str, action: str, on: list) -> list[str]:
    """Return how long a kind of click takes, once the page has come to rest."""
    opened(driver, page, DRAWN, view)
    _rest(driver)
    answered(driver, action, on[0])
    before = busy(driver)
    clock = [1000 * answered(driver, action, argument)[0] for argument in on[1:]]
    cpu = 1000 * (busy(driver) - before) / len(clock)
    return [name, f"{median(clock):.0f}", f"{max(clock):.0f}", f"{cpu:.0f}"]


def _rest(driver: Any, quiet: float = 0.01) -> None:
    """Wait until the page does nothing more: views are made while it is idle."""
    before = -1.0
    while busy(driver) - before > quiet:
        before = busy(driver)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
