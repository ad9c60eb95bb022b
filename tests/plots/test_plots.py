"""Plots draw what they are given, where it belongs, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.markers import MarkerStyle
from matplotlib.text import Text

from ntkprobe.plots import style
from ntkprobe.plots.heatmap import group_map
from ntkprobe.plots.lines import group_lines, label_ends, pair_lines, profile
from ntkprobe.plots.points import group_points, shaded_path


@pytest.fixture
def ax():
    return style.panels(1, 1)[1][0, 0]


def steps_of(group, values):
    return pd.DataFrame({"step": range(len(values)), "group": group, "value": values})


def test_a_line_goes_through_the_values_of_its_group(ax):
    group_lines(pd.concat([steps_of("toxic", [0.1, 0.9]), steps_of("normal", [0.2, 0.3])]), ax)
    toxic = next(line for line in ax.lines if line.get_color() == style.group_style("toxic").colour)
    assert list(toxic.get_ydata()) == [0.1, 0.9]


def test_lines_are_drawn_in_order_of_step_whatever_the_order_of_rows(ax):
    group_lines(steps_of("toxic", [0.1, 0.5, 0.9]).iloc[::-1], ax)
    assert list(ax.lines[0].get_xdata()) == [0, 1, 2]


def test_every_line_is_named_at_its_end(ax):
    group_lines(pd.concat([steps_of(g, [0, 1]) for g in style.GROUPS]), ax)
    assert {t.get_text() for t in ax.texts} == {"normal", "seemingly toxic", "toxic"}


def test_labels_of_equal_heights_do_not_lie_on_each_other(ax):
    label_ends(ax, [(0.5, "one", "k"), (0.5, "two", "k"), (0.5, "three", "k")])
    ax.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(t) for t in ax.texts]  # without the lines that tie them
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_only_labels_that_were_pushed_away_are_tied_to_their_heights(ax):
    label_ends(ax, [(0.1, "alone", "k"), (0.5, "one", "k"), (0.5, "two", "k"), (0.5, "3", "k")])
    tied = {text.get_text(): text.arrow_patch is not None for text in ax.texts}
    assert tied == {"alone": False, "one": True, "two": False, "3": True}


def test_labels_far_apart_stay_at_their_heights(ax):
    label_ends(ax, [(0.3, "low", "k"), (0.7, "high", "k")])
    assert [t.xy[1] for t in ax.texts] == pytest.approx([0.3, 0.7])


def test_pair_lines_emphasise_only_the_asked_pairs(ax):
    groups = ["normal", "seemingly_toxic", "toxic"]
    pairs = [(a, b) for a in groups for b in groups]
    table = pd.DataFrame(
        [(s, *p, 0.1 * i, 0, 1) for s in (0, 1) for i, p in enumerate(pairs)],
        columns=["step", "observed_group", "updated_group", "similarity", "low", "high"],
    )
    pair_lines(table, ax, emphasised=("seemingly_toxic", "toxic"))
    widths = [line.get_linewidth() for line in ax.lines]
    assert (len(widths), widths.count(max(widths))) == (9, 2)


def test_a_map_prints_observed_in_rows_and_updated_in_columns(ax):
    groups = ["seemingly_toxic", "toxic", "normal"]
    table = pd.DataFrame(
        [(a, b, 0.1 * i + 0.01 * j) for i, a in enumerate(groups) for j, b in enumerate(groups)],
        columns=["observed_group", "updated_group", "similarity"],
    )
    group_map(table, ax)
    printed = np.array([float(t.get_text()) for t in ax.texts]).reshape(3, 3)
    assert printed[0, 1] == pytest.approx(0.01)
    assert printed[1, 0] == pytest.approx(0.10)


def test_a_path_darkens_with_the_step(ax):
    table = pd.DataFrame({"step": [0, 1, 2], "x": [0, 1, 2], "y": [0, 1, 2]})
    shaded_path(table, ax, x="x", y="y", colour="#117733", label="run")
    assert np.all(np.diff(ax.collections[0].get_facecolors()[:, :3].sum(axis=1)) < 0)


def test_the_end_of_a_path_is_named_towards_the_middle(ax):
    ax.set(xlim=(0, 10), ylim=(0, 10))
    for x, side in ((1, "left"), (9, "right")):
        table = pd.DataFrame({"step": [0, 1], "x": [5, x], "y": [5, 5]})
        shaded_path(table, ax, x="x", y="y", colour="#117733", label="run", start=False)
        assert ax.texts[-1].get_horizontalalignment() == side
    assert len(ax.texts) == 2


def test_a_map_prints_what_stands_beside_only_where_there_is_something(ax):
    table = pd.DataFrame(
        {"observed_group": ["a", "a", "b", "b"], "updated_group": ["a", "b", "a", "b"]}
    ).assign(similarity=[0.1, 0.2, 0.3, 0.4], paper=[0.9, None, None, None])
    group_map(table, ax, beside="paper")
    assert [t.get_text() for t in ax.texts] == ["0.10\n(0.90)", "0.20", "0.30", "0.40"]


def test_every_point_has_its_groups_colour_and_shape(ax):
    table = pd.DataFrame({"group": ["toxic", "seemingly_toxic"], "x": [1, 2], "y": [3, 4]})
    group_points(table, ax, x="x", y="y")
    for cloud, group, place in zip(
        ax.collections, ["seemingly_toxic", "toxic"], [[2, 4], [1, 3]], strict=True
    ):
        assert cloud.get_offsets().tolist() == [place]
        assert to_hex(cloud.get_facecolor()[0]).upper() == style.group_style(group).colour
        marker = MarkerStyle(style.group_style(group).marker)
        shape = marker.get_path().transformed(marker.get_transform())
        assert np.array_equal(cloud.get_paths()[0].vertices, shape.vertices)
    assert len({look.marker for look in style.GROUPS.values()}) == len(style.GROUPS)


def test_a_profile_to_compare_with_is_dashed_and_has_no_band(ax):
    rows = pd.DataFrame({"layer": [1, 2], "value": [0.5, 0.6], "low": 0.4, "high": 0.7})
    profile(rows, ax, x="layer", colour="k")
    profile(rows, ax, x="layer", colour="k", dashed=True)
    assert len(ax.collections) == 1
    assert [line.get_linestyle() != "-" for line in ax.lines] == [False, True]


def test_a_long_footnote_is_broken_before_it_leaves_the_figure():
    figure, _ = style.panels(1, 1, width=3.3)
    style.footnote(figure, "A prompt that is not the paper's. " * 9)
    figure.draw_without_rendering()
    note = figure.findobj(lambda a: getattr(a, "get_text", str)().startswith("A prompt"))[0]
    assert note.get_window_extent().x1 <= figure.bbox.x1


def test_a_picture_is_sharp_and_its_text_stays_text(tmp_path):
    figure, _ = style.row(["title"], width=2.0, height=1.0)
    figure.savefig(tmp_path / "a.png")
    figure.savefig(tmp_path / "a.pdf")
    assert imread(tmp_path / "a.png").shape[:2] == (220, 440)
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()


def test_dollar_signs_are_not_read_as_mathematics(ax):
    text = ax.set_title(style.escaped("costs $5 or $6"))
    ax.figure.draw_without_rendering()
    assert text.get_text().count(r"\$") == 2


def test_colours_of_groups_differ_in_lightness_too():
    def grey(colour):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    greys = sorted(grey(look.colour) for look in style.GROUPS.values())
    assert min(np.diff(greys)) > 30


def test_runs_never_wear_a_group_colour():
    assert not {style.run_colour(i) for i in range(8)} & {g.colour for g in style.GROUPS.values()}


def test_as_many_runs_as_a_table_has_methods_differ_in_colour():
    assert len({style.run_colour(i) for i in range(8)}) == 8


def test_a_figure_shows_itself_in_jupyter_without_a_window(ax):
    assert ax.figure._repr_png_().startswith(b"\x89PNG")


def test_a_text_without_blanks_is_cut_and_not_left_out():
    assert style.shortened("How do  I\nkill a $5 process?", 48) == r"How do I kill a \$5 process?"
    assert style.shortened("How do I kill a process that hangs?", 20) == "How do I kill a …"
    for text in ("\N{CJK UNIFIED IDEOGRAPH-65E5}" * 90, "a" * 90, f"See {'a' * 90}"):
        cut = style.shortened(text, 48)
        assert len(cut) == 48 and text.startswith(cut.removesuffix(" …"))
