"""Laws of `ntkprobe export`: what it writes to, and what it leaves alone."""

from pathlib import Path

import pytest
import training_world as world
from peft import LoraConfig, get_peft_model

from ntkprobe.checkpoints.export import export_model
from ntkprobe.cli import main
from ntkprobe.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return world.saved(tmp_path_factory.mktemp("models") / "base", num_hidden_layers=1)


def contents(folder: str | Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_an_exported_model_is_replaced_where_that_is_asked_for(base, tmp_path):
    made = export_model(base, tmp_path / "out")
    with pytest.raises(UserError, match="holds something"):
        export_model(base, made)
    (made / "model.safetensors").write_bytes(b"")
    export_model(base, made, overwrite=True)
    assert (made / "model.safetensors").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_checkpoints_beside_a_model_are_not_removed_with_it(base, tmp_path):
    run = export_model(base, tmp_path / "run")
    (run / "checkpoint-5").mkdir()
    (run / "checkpoint-5/model.safetensors").write_bytes(b"weeks of training")
    before = contents(run)
    with pytest.raises(UserError, match=r"holds more than a model \(checkpoint-5\)"):
        export_model(base, run, overwrite=True)
    assert contents(run) == before


def test_what_is_read_is_not_written_into(base, tmp_path):
    adapted = get_peft_model(
        world.network(num_hidden_layers=1), LoraConfig(target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    before = contents(base)
    for output in (Path(base), Path(base) / "merged", tmp_path / "adapter/merged"):
        with pytest.raises(UserError, match="is only read"):
            export_model(base, output, adapter=tmp_path / "adapter", overwrite=True)
    assert contents(base) == before and not (tmp_path / "adapter/merged").exists()


def test_the_folder_that_one_is_in_is_not_exchanged(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", base, "--output-dir", "."]) == 2
    assert "name one below it" in capsys.readouterr().err
    assert main(["export", "--model", base, "--output-dir", "below/it"]) == 0
    assert (tmp_path / "below/it/config.json").is_file()


def test_a_file_in_place_of_a_folder_is_a_mistake_in_the_call(base, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file/below"):
        assert main(["export", "--model", base, "--output-dir", str(output)]) == 2
        assert "cannot write to" in capsys.readouterr().err


def test_an_export_that_fails_leaves_nothing_behind(base, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        export_model(base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_is_not_removed_with_the_folder_that_it_is_in(base, tmp_path):
    made = export_model(base, tmp_path / "downloaded")  # as hub repositories have a config.json
    (made / "model.gguf").write_bytes(b"GGUF")
    before = contents(made)
    with pytest.raises(UserError, match=r"model\.gguf is only read"):
        export_model(str(made / "model.gguf"), made, overwrite=True)
    assert contents(made) == before
