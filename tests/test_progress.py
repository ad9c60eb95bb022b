"""Progress in a log: whole lines now and then, and nothing of short stages."""

import io
import re
import sys
from pathlib import Path

import pytest
from tqdm import notebook

from ntkprobe import progress as module
from ntkprobe.progress import Lines, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def gone_through(monkeypatch, seconds, stream=None, every=10.0):
    """What stderr holds after 100 steps that took so many seconds each."""
    stream, now = stream or io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(Lines, "monitor_interval", 0)
    with progress(total=100, desc="kernel", unit="product", leave=False) as bar:
        bar._time = lambda: now[0]
        for _ in range(100):
            now[0] += seconds
            bar.update()
            bar.set_postfix_str("step 7")
            bar.set_description("kernel")
    return stream.getvalue()


def test_a_long_stage_says_every_half_minute_how_much_is_left(monkeypatch):
    told = gone_through(monkeypatch, 10.0).splitlines()
    assert len(told) == 33, told[-3:]
    assert told[0].startswith("kernel: 3 of 100 products") and "left" in told[0]
    assert "16:10 left" in told[0]  # 97 steps of 10 s


def test_a_stage_of_less_than_half_a_minute_says_nothing(monkeypatch):
    assert gone_through(monkeypatch, 0.29) == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    assert "%" in gone_through(monkeypatch, 10.0, Terminal())


@pytest.mark.parametrize("disable", [True, False])
def test_a_bar_that_is_not_wanted_says_nothing(monkeypatch, disable):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    with progress(total=3, desc="x", unit="y", disable=disable) as bar:
        bar.update(3)
    assert (stream.getvalue() == "") == disable


def test_in_a_notebook_there_is_its_bar_where_it_can_be_drawn(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    for found, kind in ((None, Lines), (object(), notebook.tqdm)):
        monkeypatch.setattr(module, "find_spec", lambda name, found=found: found)
        assert module.bar_class() is kind


def test_no_stage_has_a_bar_of_its_own_that_a_log_would_hold_in_one_line():
    package = Path(module.__file__).parent
    own = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\btqdm\((?!\*)", path.read_text()) and path.name != "progress.py"
    ]
    assert own == ["tiny/pretrain.py"]


@pytest.mark.parametrize("stderr", [None, object()], ids=["none", "no terminal"])
def test_a_process_without_a_terminal_for_messages_goes_through_its_stages(monkeypatch, stderr):
    monkeypatch.setattr(module, "SECONDS", 0)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(progress(range(3), desc="stage", disable=stderr is not None)) == [0, 1, 2]
