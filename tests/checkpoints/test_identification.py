"""One answer to which model is meant by a name, wherever it is asked."""

import shutil

import pytest
from tiny_runs import save_base, tiny_adapter, tiny_model

from ntkprobe.checkpoints import LoadSettings, identity, named_identity, readiness
from ntkprobe.errors import UserError
from ntkprobe.evaluation.models import EvaluatedModel
from ntkprobe.mitigations import save
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.mitigations.storage import digest
from ntkprobe.training.runs import model_digest
from ntkprobe.watcher.models import Models


def evaluated(folder):
    record = EvaluatedModel(str(folder), load=LoadSettings()).record()
    return record["base"]["identity"]


ASKED = {
    "measure": lambda folder: Models(str(folder)).base_identity()[1],
    "evaluate": evaluated,
    "train": lambda folder: model_digest(str(folder))["model"],
}


@pytest.mark.parametrize("who", ASKED)
def test_a_folder_has_one_identity_whoever_asks_and_a_copy_has_it_too(tmp_path, who):
    folder = save_base(tmp_path / "base")
    shutil.copytree(folder, tmp_path / "copy")
    expected = identity(folder, readiness(folder).weights)
    assert ASKED[who](folder) == ASKED[who](tmp_path / "copy") == expected
    assert named_identity(str(folder)) == expected


@pytest.mark.parametrize("who", ASKED)
@pytest.mark.parametrize("lacks", ["model.safetensors", "config.json"])
def test_an_incomplete_folder_has_none_whoever_asks(tmp_path, who, lacks):
    folder = save_base(tmp_path / "base")
    (folder / lacks).unlink()
    with pytest.raises(UserError, match="base holds no whole model: no "):
        ASKED[who](folder)


def test_an_adapter_has_an_identity_and_a_method_that_names_it_depends_on_it(tmp_path):
    folder = tmp_path / "adapter"
    tiny_adapter(tiny_model(), seed=1).save_pretrained(folder)
    first = named_identity(folder)
    assert first == identity(folder, readiness(folder).weights)
    method = save(SafeDecoding(expert=str(folder)), tmp_path / "method")
    before = digest(method)
    tiny_adapter(tiny_model(), seed=2).save_pretrained(folder)
    assert named_identity(folder) != first and digest(method) != before
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter holds no whole model"):
        digest(method)


def test_a_hub_name_says_by_itself_which_model_it_is():
    assert named_identity("owner/name") is None and named_identity("") is None
    assert Models("owner/name").base_identity() == ("owner/name", "hub:owner/name")
    assert model_digest("owner/name") == {}
