"""The page's numbers are the folders', texts are data, and what is wrong or missing is said."""

import base64
import errno
import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluated import evaluate
from measured_runs import GROUPS, STEPS, write_run

from ntkprobe import Trajectory
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation.folder import EvaluationFolder
from ntkprobe.report import follow, make_report
from ntkprobe.report.contents import map_order
from ntkprobe.report.packing import MISSING_INT16, Scaled, pack, script_json
from ntkprobe.report.page import signature
from ntkprobe.storage import SCHEMA_VERSION
from ntkprobe.watcher.folder import MeasurementFolder

TYPES = {"f4": "<f4", "i4": "<i4", "i2": "<i2", "u1": "u1"}


class Elements(HTMLParser):
    """The elements of a page: `[tag, attributes, text]`, as a browser would part them."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data


def unpacked(html):
    """Return the tree that a page holds, its arrays as numbers; the page's own way is not used."""
    texts = {e[1]["id"]: e[2] for e in Elements(html).found if "id" in e[1] and e[0] == "script"}

    def array(told):
        raw = zlib.decompress(base64.b64decode(texts[told["block"]]))
        kind = np.dtype(TYPES[told["type"]])
        by_place = np.frombuffer(raw, np.uint8).reshape(kind.itemsize, -1)
        values = np.frombuffer(by_place.T.tobytes(), kind).reshape(told["shape"])
        if told["type"] != "i2":
            return values
        return np.where(values == MISSING_INT16, np.nan, values * told["scale"])

    def walked(value):
        if isinstance(value, list):
            return [walked(item) for item in value]
        if not isinstance(value, dict):
            return value
        return array(value) if "block" in value else {k: walked(v) for k, v in value.items()}

    return walked(json.loads(texts["index"]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "stl-ntk")
    write_run(folder / "dcr-stl-ntk", cross=0.1, final=0.0)
    evaluate(
        folder / "evals" / "stl",
        {"own": {"kinds": "ssx", "xstest_prefixes": "rcr", "other": "rcc"}},
        label="STL",
    )
    return folder


@pytest.fixture(scope="module")
def tree(place):
    return unpacked(make_report([place, place / "evals"]).html)


@pytest.fixture(scope="module")
def stl(tree):
    return tree["sets"][0]["runs"][0]


@pytest.fixture(scope="module")
def run(place):
    return Trajectory(place / "stl-ntk")


def test_runs_on_the_same_prompts_are_together_the_refined_one_last(tree):
    assert [[run["name"] for run in one["runs"]] for one in tree["sets"]] == [["stl", "dcr-stl"]]
    assert [run["label"] for run in tree["sets"][0]["runs"]] == ["STL", "DCR → STL"]


def test_every_similarity_is_the_trajectorys(stl, run):
    kernel = stl["kernel"]
    assert kernel["steps"] == list(STEPS) and len(kernel["prompts"]) == 15
    for row in run.kernel().sample(50, random_state=0).itertuples():
        at = kernel["prompts"].index(row.observed), kernel["prompts"].index(row.updated)
        step = kernel["steps"].index(row.step)
        assert kernel["similarity"][step, *at] == np.float32(row.similarity)


def test_every_probability_and_verdict_is_the_trajectorys(stl, run):
    rows = run.refusal().query("reduction == 'literal'")
    steps = {step: place for place, step in enumerate(stl["refusal"]["steps"])}
    for row in rows.itertuples():
        at = steps[row.step], row.prompt
        assert stl["refusal"]["probability"][at] == np.float32(row.probability)
        assert stl["refusal"]["refuses"][at] == row.refuses


def test_means_are_those_of_the_trajectory_with_their_intervals(stl, run):
    shown = pd.DataFrame(stl["kernel"]["means"])
    pd.testing.assert_frame_equal(shown, run.group_means(), check_dtype=False)
    probabilities = pd.DataFrame(stl["refusal"]["probabilities"])
    means = run.refusal_means().query("reduction == 'literal'").set_index(["step", "group"])
    for row in probabilities.itertuples():
        assert row.value == pytest.approx(means.loc[(row.step, row.group), "probability"])
        assert row.low <= row.value <= row.high
    for row in pd.DataFrame(stl["refusal"]["rates"]).itertuples():
        assert row.value == pytest.approx(means.loc[row.step, row.group].iloc[3])
        assert row.low <= row.value <= row.high


def test_layers_sum_to_the_similarity_and_their_means_are_over_different_prompts(stl, run):
    found, kernel = stl["layers"], stl["kernel"]
    largest = np.nanmax(np.abs(found["pairs_by_place"]))
    sums = found["pairs_by_place"].sum(axis=1)
    np.testing.assert_allclose(sums, kernel["similarity"], atol=largest / 16000)
    keys = ["step", "observed", "updated"]
    rows = run.parts().merge(run.kernel().drop(columns="norm"), on=keys)
    rows = rows[rows["observed"] != rows["updated"]]
    rows["place"] = rows["layer"].astype("string").fillna(rows["part"])
    rows["contribution"] = rows["share"] * rows["similarity"]
    by = ["step", "place", "part", "observed_group", "updated_group"]
    for at, mean in rows.groupby(by)["contribution"].mean().items():
        place = found["steps"].index(at[0]), found["parts"].index([at[1], at[2]])
        ends = (found["names"].index(name) for name in at[3:])
        assert found["groups"][*place, *ends] == pytest.approx(mean, rel=1e-6)


def test_pushes_are_the_strongest_of_the_trajectory_with_their_texts(stl, run):
    pushes = stl["pushes"]
    rows = run.influence().query("step == 5 and observed == 12").sort_values("change")
    at = pushes["steps"].index(5), pushes["prompts"].index(12)
    kept = pushes["change"][at][np.isfinite(pushes["change"][at])]
    assert kept.tolist() == [np.float32(x) for x in rows["change"][::-1]]
    texts = [pushes["pairs"]["text"][which] for which in pushes["which"][at] if which >= 0]
    assert texts == run.updated.set_index("updated")["text"].loc[rows["updated"][::-1]].tolist()


def test_the_map_is_ordered_by_group_and_like_prompts_stand_together(stl):
    groups = [GROUPS[prompt // 12] for prompt in stl["kernel"]["prompts"]]
    shown = [groups[position] for position in stl["kernel"]["order"]]
    assert shown == ["seemingly_toxic"] * 5 + ["toxic"] * 5 + ["normal"] * 5
    alike = np.eye(4) + np.array([[0, 0, 0.9, 0], [0, 0, 0, 0.9], [0.9, 0, 0, 0], [0, 0.9, 0, 0]])
    order = map_order(alike, ["toxic"] * 4)
    assert abs(order.index(0) - order.index(2)) == 1 == abs(order.index(1) - order.index(3))


def test_refused_safe_prompts_come_with_answers_and_all_verdicts(tree):
    refused = tree["evaluations"]["refused"]
    assert refused["prompt"] == ["Ask own-0?"] and refused["answer"] == ["own-0"]
    assert refused["verdicts"] == ["other: refusal, xstest_prefixes: refusal"]
    tables = {table["name"] for table in tree["evaluations"]["tables"]}
    assert tables == {"1", "5", "agreement"}


def test_answers_are_found_by_the_texts_of_measured_prompts(tmp_path):
    write_run(tmp_path / "a-ntk")
    folder = evaluate(tmp_path / "e", {"own": {"kinds": "s", "xstest_prefixes": "r"}})
    asked = pd.read_parquet(folder / "prompts/own.parquet").assign(prompt="toxic prompt 2, $5")
    asked.to_parquet(folder / "prompts/own.parquet")
    answers = unpacked(make_report([tmp_path / "a-ntk", folder]).html)["sets"][0]["answers"]
    assert answers["prompt"] == [26] and answers["answer"] == ["own-0"]
    assert answers["verdicts"] == ["xstest_prefixes: refusal"]


def test_packed_numbers_come_back_and_missing_ones_stay_missing():
    values = np.array([[1.5, np.nan], [-3, 0.25]], "<f4")
    numbers = np.arange(6, dtype="<i4").reshape(2, 3)
    packed = pack({"a": values, "b": [Scaled(values)], "c": numbers, "d": float("nan")})
    blocks = "".join(f'<script id="{k}">{text}</script>' for k, text in packed.blocks.items())
    tree = unpacked(f'{blocks}<script id="index">{packed.index}</script>')
    np.testing.assert_array_equal(tree["a"], values)
    np.testing.assert_allclose(tree["b"][0], values, atol=3 / 32767 / 2 * 1.001)
    np.testing.assert_array_equal(tree["c"], numbers)
    assert tree["d"] is None


@pytest.mark.parametrize(
    "text",
    ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "\ud800", "\u2028", "&lt;", "\0"],
)
def test_a_text_cannot_leave_its_script_element(text):
    packed = script_json([text])
    assert packed.isascii() and not set(packed) & set("<>&")
    assert json.loads(packed) == [text]


def test_a_page_with_hostile_texts_has_the_elements_of_one_without(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)><!-- <script>"
    write_run(tmp_path / "plain-ntk")
    write_run(tmp_path / "hostile-ntk", texts=dict.fromkeys(GROUPS, hostile))
    pages = [make_report([f"</title><script>={tmp_path / 'hostile-ntk'}"]).html]
    pages.append(make_report([tmp_path / "plain-ntk"]).html)
    tags = [[(e[0], e[1].get("id")) for e in Elements(page).found] for page in pages]
    assert tags[0] == tags[1]
    assert hostile in json.dumps(unpacked(pages[0])["sets"][0]["prompts"]["text"])


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(place):
    elements = Elements(make_report([place]).html).found
    policy = next(e[1]["content"] for e in elements if e[1].get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    run = [e[2] for e in elements if e[0] == "script" and "type" not in e[1]]
    assert len(run) == 4 == policy.partition("style-src")[0].count("sha256-")
    assert not [e for e in elements if {"src", "href", "style"} & set(e[1]) - {"href"}]
    links = [e[1]["href"] for e in elements if "href" in e[1]]
    assert links == ["#content"]


def test_no_script_of_the_page_can_end_its_element():
    folder = Path(sys.modules["ntkprobe.report"].__file__).parent
    for path in [*folder.glob("scripts/*.js"), *folder.glob("vendor/*.js")]:
        assert not re.search(r"</script|<!--", path.read_text(), re.IGNORECASE), path.name


def test_the_same_folders_give_the_same_bytes(place):
    assert make_report([place]).html == make_report([place]).html


def test_runs_on_other_prompts_are_shown_apart(tmp_path):
    write_run(tmp_path / "a-ntk")
    write_run(tmp_path / "b-ntk", texts={"toxic": "another question ?"})
    sets = unpacked(make_report([tmp_path]).html)["sets"]
    assert [[run["name"] for run in one["runs"]] for one in sets] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("table", "keys", "command"),
    [
        ("kernel", {"kernel", "layers", "tokens"}, "--only kernel"),
        ("refusal", {"refusal", "tokens"}, "--only refusal"),
        ("parts", {"layers", "tokens"}, "--by layer"),
        ("influence", {"pushes", "tokens"}, "--influence refusal"),
    ],
)
def test_a_missing_table_is_none_and_its_command_is_told(table, keys, command, tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    for path in (folder / table).iterdir():
        path.unlink()
    found = unpacked(make_report([folder]).html)["sets"][0]["runs"][0]
    assert {
        key for key in ("kernel", "refusal", "layers", "pushes", "tokens") if not found[key]
    } == keys
    assert set(found["missing"]) == keys
    assert any(command in line and "ntkprobe measure" in line for line in found["missing"].values())


def test_rates_without_answers_are_missing_and_not_zero(tmp_path):
    folder = write_run(tmp_path / "a-ntk", answers=False)
    found = unpacked(make_report([folder]).html)["sets"][0]["runs"][0]
    assert found["refusal"]["rates"] is None and (found["refusal"]["refuses"] == 255).all()
    assert "rates" in found["missing"]


def test_cautions_name_what_limits_the_numbers(tmp_path):
    for name, told in (("a", {"estimator": "finite_difference", "top_k_at": "each"}), ("b", {})):
        folder = write_run(tmp_path / f"{name}-ntk")
        settings = {"schema_version": 1, "kernel": told, "prompts": {"template": "raw"}}
        (folder / "run.json").write_text(json.dumps(settings))
    said = " ".join(unpacked(make_report([tmp_path]).html)["sets"][0]["cautions"])
    for words in (
        "approximated by finite_difference",
        "raw",
        "own most probable",
        "do not compare",
    ):
        assert words in said
    assert "constructed world" not in said


def test_the_demos_page_says_that_its_world_is_constructed():
    demo = Path(__file__).parents[2] / "figures" / "demo"
    page = make_report([demo])
    assert len(page.html) < 6e6
    assert "constructed world" in unpacked(page.html)["sets"][0]["cautions"][0]


def test_pairs_by_layer_are_kept_of_fewer_steps_where_there_are_too_many(place, monkeypatch):
    monkeypatch.setattr("ntkprobe.report.contents.PAIR_BUDGET", 2 * 3 * 2 * 15**2)
    found = unpacked(make_report([place]).html)["sets"][0]["runs"][0]["layers"]
    assert found["pair_steps"] == [0, 5, 40] and found["steps"] == list(STEPS)


def test_both_writers_formats_are_the_one_that_is_read(tmp_path):
    measured, evaluated = MeasurementFolder(tmp_path / "m"), EvaluationFolder(tmp_path / "e")
    measured.adopt({"model": {"base_identity": None}}, {})
    evaluated.adopt({"model": {}, "answers": {}, "benchmarks": {}})
    assert {each.record["schema_version"] for each in (measured, evaluated)} == {SCHEMA_VERSION}


def test_another_format_is_refused_with_both_numbers(tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    (folder / "run.json").write_text('{"schema_version": 7}')
    with pytest.raises(UserError, match="has format 7, this ntkprobe reads format 1"):
        make_report([folder])


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_damaged_record_is_one_clear_line(text, tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run.json (is damaged|holds no settings)"):
        make_report([folder])


def test_a_folder_with_nothing_is_named_with_the_commands(tmp_path, capsys):
    assert main(["report", str(tmp_path), f"--output-file={tmp_path / 'r.html'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ntkprobe: no measurements and no evaluation in {tmp_path}")
    assert "ntkprobe measure" in said and not (tmp_path / "r.html").exists()


def test_a_run_without_a_step_so_far_is_told(tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    for path in folder.glob("*/step-*"):
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint has been measured"):
        make_report([folder])


def test_two_runs_of_one_name_are_refused(place):
    with pytest.raises(UserError, match="NAME=FOLDER"):
        make_report([place / "stl-ntk", place])


def test_a_disk_that_fills_up_leaves_the_page_that_was_there(place, tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.html"
    path.write_text("older")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["report", str(place), f"--output-file={path}"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_command_writes_a_page_without_torch(place, tmp_path):
    code = (
        "import sys; from ntkprobe.cli import main; status = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(status)"
    )
    call = [sys.executable, "-c", code, "report", str(place), str(place / "evals")]
    done = subprocess.run(
        [*call, "--output-file", str(tmp_path / "r.html")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("open it in a browser; it needs nothing else.")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_a_trajectory_shows_its_page_in_a_frame(run, tmp_path):
    page = run.report(blur=True)
    assert unpacked(page.html)["page"]["blur"] is True
    frames = [e for e in Elements(page._repr_html_()).found if e[0] == "iframe"]
    assert len(frames) == 1 and frames[0][1]["srcdoc"] == page.html
    assert "allow-same-origin" not in frames[0][1]["sandbox"]
    assert page.save(tmp_path / "page.html").read_text() == page.html


def test_following_writes_the_page_again_when_a_step_is_added_and_then_leaves_it(tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    hidden = tmp_path / "later.parquet"
    (folder / "refusal/step-00000040.parquet").rename(hidden)
    (folder / "kernel/step-00000040.parquet").unlink()
    path, pages = tmp_path / "r.html", []

    def tell(line):
        pages.append((line, unpacked(path.read_text())))
        hidden.exists() and hidden.rename(folder / "refusal/step-00000040.parquet")

    follow([folder], path, poll_interval=0.01, idle_timeout=0.1, log=tell)
    steps = [tree["sets"][0]["runs"][0]["refusal"]["steps"][-1] for _, tree in pages]
    assert steps == [20, 40] and all(tree["page"]["reload"] for _, tree in pages)
    assert unpacked(path.read_text())["page"]["reload"] is None


def test_files_being_written_are_no_news(tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    before = signature([folder])
    (folder / "kernel/.step-00000050.parquet.1.tmp").write_bytes(b"PAR1")
    (folder / ".pins").mkdir()
    (folder / ".pins/model.safetensors").write_bytes(b"x")
    assert signature([folder]) == before
    (folder / "kernel/step-00000050.parquet").write_bytes(b"x")
    assert signature([folder]) != before
