"""The committed measurements redraw every figure, without torch, and the pictures can be read."""

import json
import subprocess
import sys
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from ntkprobe.figures import figure_names, find_runs
from ntkprobe.plots import style

pytestmark = pytest.mark.slow

FIGURES = Path(__file__).parents[2] / "figures"
DEMO = FIGURES / "demo"


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """Return the folder into which a process without torch drew everything."""
    out = tmp_path_factory.mktemp("redrawn")
    code = (
        "import runpy, sys; sys.argv[1:] = ['--output-dir', sys.argv[1], '--compare', 'paper']\n"
        f"try: runpy.run_path({str(FIGURES / 'regenerate.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not drawn" not in done.stderr, done.stderr
    return out


@pytest.fixture(scope="module")
def drawn(redrawn):
    """Return every figure with its pixels, and its texts with the boxes that they fill."""
    with pytest.MonkeyPatch.context() as patch:
        seen, draw = [], Text.draw
        patch.setattr(Text, "draw", lambda t, renderer: (seen.append(t), draw(t, renderer)))
        return {name: _drawn(name, redrawn, seen) for name in figure_names()}


def _drawn(name, folder, seen):
    figure = import_module(f"ntkprobe.figures.{name}").draw(pd.read_csv(folder / f"{name}.csv"))
    canvas = FigureCanvasAgg(figure)
    seen.clear()
    canvas.draw()
    shown = [t for t in seen if t.get_visible() and t.get_text().strip()]
    texts = [(t.get_text(), Text.get_window_extent(t)) for t in shown]
    return figure, np.asarray(canvas.buffer_rgba())[..., :3] / 255, texts


def test_every_figure_is_redrawn_from_the_committed_measurements(redrawn):
    wanted = {f"{name}{end}" for name in figure_names() for end in (".png", ".pdf", ".csv")}
    assert {path.name for path in redrawn.iterdir()} == wanted


def test_the_committed_measurements_are_small_and_name_no_machine():
    files = [path for path in DEMO.rglob("*") if path.is_file() and "figures" not in path.parts[-2]]
    assert sum(path.stat().st_size for path in files) < 2.4e6
    for name in ("stl", "dcr-stl"):
        told = json.loads((DEMO / f"{name}-ntk" / "run.json").read_text())
        assert '"/' not in json.dumps(told)
        assert told["ckpt_dir"] == f"runs/demo/{name}"


def test_the_demo_shows_what_the_paper_found(redrawn):
    table = pd.read_csv(redrawn / "fig6.csv")
    rows = table.query("observed_group == 'seemingly_toxic' and updated_group == 'toxic'")
    across = rows.set_index("run")["similarity"]
    assert across["dcr-stl"] < across["stl"] / 2
    last = pd.read_csv(redrawn / "fig4.csv").query("step == 250").set_index("run")
    assert last.loc["stl", "compliance"] < 0.5 < 0.9 < last.loc["dcr-stl", "compliance"]


def test_the_layers_add_up_to_the_similarity_of_each_direction(redrawn):
    keys = ["run", "observed_group", "updated_group"]
    sums = pd.read_csv(redrawn / "layers.csv").groupby(keys)["contribution"].sum()
    means = pd.read_csv(redrawn / "fig6.csv").set_index(keys)["similarity"]
    np.testing.assert_allclose(sums, means[sums.index], rtol=1e-5)
    refined = sums["dcr-stl"]
    assert len(refined) == 2 and refined.max() > 1.2 * refined.min()  # not one number


def test_the_rounding_of_narrow_norms_is_below_a_millionth_of_a_similarity():
    run = find_runs([DEMO])["stl"]
    assert str(run.kernel()["norm"].dtype) == "float32"
    assert np.finfo(np.float32).eps * run.kernel()["similarity"].max() < 1e-6


@pytest.mark.parametrize("name", figure_names())
def test_no_text_is_clipped_or_lies_on_another(name, drawn):
    figure, _, shown = drawn[name]
    assert len(shown) > 5
    for text, box in shown:
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (one, a), (other, b) in combinations(shown, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_the_ink_of_fig5_lies_where_the_numbers_say(redrawn, drawn):
    figure, ink, _ = drawn["fig5"]
    last = pd.read_csv(redrawn / "fig5.csv").query("run == 'stl' and step == 250")
    for row in last.itertuples():
        x, y = figure.axes[0].transData.transform((row.step, row.value))
        colour = ink[round(ink.shape[0] - y), round(x)]
        np.testing.assert_allclose(colour, to_rgb(style.group_style(row.group).colour), atol=0.02)


def test_the_ink_of_fig6_is_darker_where_the_similarity_is_larger(redrawn, drawn):
    figure, ink, _ = drawn["fig6"]
    table = pd.read_csv(redrawn / "fig6.csv").query("run == 'dcr-stl'")
    order = style.in_order(table["observed_group"])
    shades = []
    for row in table.itertuples():
        corner = order.index(row.updated_group) + 0.1, order.index(row.observed_group) + 0.1
        x, y = figure.axes[1].transData.transform(corner)
        shades.append(ink[round(ink.shape[0] - y), round(x)].sum())
    assert table["similarity"].rank().tolist() == pd.Series(shades).rank(ascending=False).tolist()
