"""What a folder says of itself is read in one place, and a newer version's folder is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated import evaluate
from measured_runs import write_run

from ntkprobe import Trajectory, tiny
from ntkprobe.attribution.pair_blocks import require_recorded, settle
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation import Evaluation
from ntkprobe.mitigations.storage import load, mitigation_class, save
from ntkprobe.storage import SCHEMA_VERSION, read_record, require_schema

NEWER = f"has format {SCHEMA_VERSION + 1}, this ntkprobe reads format {SCHEMA_VERSION}"


def as_newer(path: Path) -> None:
    """Make a record say that a newer version wrote it."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**record, "schema_version": SCHEMA_VERSION + 1}))


def test_this_form_and_one_that_is_not_told_are_read():
    require_schema({"schema_version": SCHEMA_VERSION}, "F", "stop")
    require_schema({}, "F", "stop")
    with pytest.raises(UserError, match=f"F {NEWER}: use the version that wrote it, or stop"):
        require_schema({"schema_version": SCHEMA_VERSION + 1}, "F", "stop")


def test_a_record_is_utf_8_whatever_the_locale_is(tmp_path):
    path, value = tmp_path / "record.json", {"model": "caf\u00e9 \u4f60\u597d"}
    write = "import json, sys; from pathlib import Path; from ntkprobe.storage import write_json; "
    write += "write_json(Path(sys.argv[1]), json.loads(sys.argv[2]))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", write, str(path), json.dumps(value)]
    subprocess.run(words, env={**os.environ, **plain}, check=True)
    assert read_record(path, "") == value


def test_a_record_is_a_whole_mapping_or_one_clear_line(tmp_path):
    assert read_record(tmp_path / "run.json", "stop") == {}
    for text, words in (("{", "is damaged"), ("[1]", "holds no settings"), ("\0", "is damaged")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=rf"run\.json {words}.*: stop$"):
            read_record(tmp_path / "run.json", "stop")


@pytest.mark.parametrize("command", ["figures", "report", "table", "measure", "evaluate"])
def test_a_newer_versions_folder_is_a_mistake_in_the_call(command, tmp_path, capsys):
    measured = command not in ("table", "evaluate")
    kinds = {"set": {"kinds": "s"}}
    folder = write_run(tmp_path / "m") if measured else evaluate(tmp_path / "e", kinds)
    as_newer(folder / "run.json")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    model = ["--model", str(tiny.model_path()), "--output-dir", str(folder)]
    flags = {
        "measure": [*model, "--prompts", str(tiny.measure_path())],
        "evaluate": [*model, "--benchmark", "tiny", "--limit", "2"],
        "figures": [str(folder), "--output-dir", str(tmp_path / "figures")],
        "report": [str(folder), "--output-file", str(tmp_path / "report.html")],
        "table": [str(folder)],
    }
    assert main([command, *flags[command]]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ntkprobe:")]
    assert len(said) == 1 and f"{folder / 'run.json'} {NEWER}" in said[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_readers_refuse_a_newer_versions_folder(tmp_path):
    measured = write_run(tmp_path / "m")
    evaluated = evaluate(tmp_path / "e", {"set": {"kinds": "s"}})
    for read, folder in ((Trajectory, measured), (Evaluation, evaluated)):
        read(folder)
        as_newer(folder / "run.json")
        with pytest.raises(UserError, match=NEWER):
            read(folder)


def test_a_newer_versions_attribution_is_refused(tmp_path):
    told = {"what": "the attribution", "instead": "stop"}
    path = tmp_path / "run.json"
    settle(path, {"pairs": "p"}, **told)
    settle(path, {"pairs": "p"}, **told)
    as_newer(path)
    for compare in (settle, require_recorded):
        with pytest.raises(UserError, match=NEWER):
            compare(path, {"pairs": "p"}, **told)


def test_a_newer_versions_mitigation_is_refused_as_is_one_without_a_version(tmp_path):
    method = mitigation_class("self_cd")()
    path = save(method, tmp_path) / "mitigation.json"
    about = json.loads(path.read_text())
    assert type(load(tmp_path)) is type(method)
    as_newer(path)
    with pytest.raises(UserError, match=f"{NEWER}.* fit the mitigation again"):
        load(tmp_path)
    path.write_text(json.dumps({k: v for k, v in about.items() if k != "schema_version"}))
    with pytest.raises(UserError, match="has format None"):
        load(tmp_path)


@pytest.mark.parametrize("command", ["report", "table", "flips", "figures"])
def test_a_file_in_place_of_a_folder_gets_the_commands_own_message(command, tmp_path, capsys):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,group\nhello,toxic\n")
    assert main([command, str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ntkprobe: ") and str(file) in line
    assert "damaged" not in line and "Errno" not in line
    assert list(tmp_path.iterdir()) == [file]
