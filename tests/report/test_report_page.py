"""The page as a file: texts are data, it needs nothing else, it is written again as steps come."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from measured_runs import GROUPS, write_run
from report_pages import Elements, unpacked

from ntkprobe.cli import main
from ntkprobe.report import follow, make_report
from ntkprobe.report.packing import script_json
from ntkprobe.report.page import signature

# Texts and scripts


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


# Written, shown and followed


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


def test_a_disk_that_fills_up_leaves_the_page_that_was_there(place, tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.html"
    path.write_text("older")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["report", str(place), f"--output-file={path}"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]
