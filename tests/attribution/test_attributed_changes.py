"""Attribution is Eq. 2 for every pair, summed by learning rates or recorded steps."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import training_world as world
from attributed_runs import PROMPTS, QUICK, last_model

import ntkprobe as ntk
from ntkprobe.attribution import recorded_steps
from ntkprobe.attribution.weights import checkpoint_weights
from ntkprobe.checkpoints import LoadSettings, load_checkpoint
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.errors import UserError
from ntkprobe.prompts.prompt_set import Prompt, PromptSet
from ntkprobe.training.callbacks import StepCallback
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.watcher.choices import parse_steps

SETTINGS = {"n_general": 10, "n_safe": 6, "gradient_accumulation_steps": 1}


def chat(words, text):
    turn = [{"role": "user", "content": text}]
    return words.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)


class TestNumbers:
    @pytest.mark.slow
    def test_changes_of_refusals_are_the_influence_of_each_pair(self, trained):
        found = ntk.attribute(trained, prompts=PROMPTS[:1], over="final")
        pairs = [(r.prompt, r.response) for r in found.pairs.itertuples()]
        with last_model(trained) as model:
            expected = ntk.influence(
                model, world.tokenizer(), observed=PROMPTS[:1], updated=pairs, tokens=None
            )
        (weight,) = found.weights.values()
        np.testing.assert_allclose(found.changes.T, weight * expected.refusal.numpy(), rtol=2e-3)

    def test_changes_of_tokens_are_autograds(self, trained):
        found = ntk.attribute(trained, **QUICK, over="final")
        with last_model(trained) as model:
            words = world.tokenizer()
            ids = chat(words, PROMPTS[1])
            chosen = [p for n, p in model.named_parameters() if "lora" in n]
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_(True)
            token = words("I")["input_ids"][0]
            logits = model(torch.tensor([ids])).logits[0, -1]
            seen = torch.autograd.grad(logits.log_softmax(-1)[token], chosen)
            row = found.pairs.iloc[3]
            start = chat(words, row["prompt"])
            answer = words(row["response"])["input_ids"] + [words.eos_token_id]
            labels = torch.tensor([[-100] * len(start) + answer])
            loss = model(torch.tensor([start + answer]), labels=labels).loss * len(answer)
            moved = torch.autograd.grad(loss, chosen)
        expected = -sum(float((a * b).sum()) for a, b in zip(seen, moved, strict=True))
        (weight,) = found.weights.values()
        assert found.changes[1, 3] == pytest.approx(weight * expected, rel=1e-3)

    def test_responses_of_training_pairs_have_a_gram_matrix_and_are_said_to_be_such(self, trained):
        pairs = [world.safe(6)[2], world.general(10)[3]]
        asked = PromptSet(tuple(Prompt(p.prompt, "toxic", response=p.response) for p in pairs))
        found = ntk.attribute(trained, prompts=asked, target="response", over="final")
        rows = [list(found.pairs["prompt"]).index(pair.prompt) for pair in pairs]
        gram = found.changes[:, rows]
        np.testing.assert_allclose(gram, gram.T, rtol=1e-4)
        assert (np.linalg.eigvalsh(gram) > 0).all()
        assert sum("training set itself" in remark for remark in found.remarks) == 2

    def test_prompts_are_explained_with_the_system_message_of_the_training(self, trained, tmp_path):
        config = SFTConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            system="Be brief.",
            save_at=[1],
            **SETTINGS | {"max_steps": 1},
        )
        base = trained.parent / "base"
        train_sft(str(base), world.general(10), world.safe(6), config)
        found = ntk.attribute(tmp_path / "run", **QUICK, over="final")
        words = world.tokenizer()
        asked = {"role": "user", "content": PROMPTS[0]}
        turns = {True: [{"role": "system", "content": "Be brief."}, asked], False: [asked]}
        model = load_checkpoint(base, LoadSettings(attn_implementation="sdpa"))
        token, read = words("I")["input_ids"][0], {}
        with adapted(model, tmp_path / "run" / "checkpoint-1", merge=False) as whole:
            for system, turn in turns.items():
                ids = words.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
                with torch.no_grad():
                    read[system] = whole(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token]
        assert found.values[0] == pytest.approx(float(read[True]), rel=1e-5)
        assert found.values[0] != pytest.approx(float(read[False]), rel=1e-4)
        assert "system message" in found.remarks[-1]

    @pytest.mark.slow
    def test_the_sum_is_that_of_its_checkpoints(self, trained, whole):
        parts = sum(
            ntk.attribute(trained, **QUICK, over="final", steps=parse_steps(str(step))).changes
            * weight
            / sum(whole.weights.values())
            for step, weight in whole.weights.items()
        )
        np.testing.assert_allclose(whole.changes, parts, rtol=1e-6, atol=1e-14)

    def test_neither_batches_nor_blocks_change_a_number(self, trained, whole):
        other = ntk.attribute(trained, **QUICK, batch_size=1, block=3)
        np.testing.assert_allclose(other.changes, whole.changes, rtol=1e-3, atol=1e-9)

    def test_shares_have_the_sign_of_the_change_and_add_up_in_size(self, whole):
        np.testing.assert_allclose(np.abs(whole.shares).sum(1), 1)
        assert (np.sign(whole.shares) == np.sign(whole.changes)).all()
        assert (whole.errors == 0).all() and whole.agreement.min() >= 0

    def test_a_step_counts_for_the_nearest_checkpoint_and_none_is_lost(self):
        assert checkpoint_weights([0, 4], [1, 1, 1, 1, 1], 1, 1) == [3, 2]
        rates = [0.1, 0.4, 0.2, 0.3]
        assert sum(checkpoint_weights([1, 3], rates, 5, 2)) == pytest.approx(sum(rates) / 10)

    @pytest.mark.slow
    @pytest.mark.parametrize("every", [1, 2, 4])
    def test_a_run_that_logs_its_rates_less_often_has_the_same_weights(
        self, trained, tmp_path, every
    ):
        shutil.copytree(trained, tmp_path / "run")
        (tmp_path / "run" / "training.yaml").unlink()  # as another trainer leaves a run
        marker = tmp_path / "run" / "checkpoint-8" / "trainer_state.json"
        state = json.loads(marker.read_text())
        steps = range(every, 9, every)
        state["log_history"] = [{"step": s, "learning_rate": 1e-3, "loss": 1.0} for s in steps]
        marker.write_text(json.dumps(state))
        found = ntk.attribute(tmp_path / "run", **QUICK, over="checkpoints")
        ratios = np.array(list(found.weights.values())) / found.weights[4]
        np.testing.assert_allclose(ratios, [0.75, 1, 0.25])


class TestRecordedSteps:
    def test_replayed_steps_are_those_recorded_and_their_parts_add_up(self, trained):
        found = ntk.attribute(trained, **QUICK, over="steps")
        said = found.remarks[0].split()
        assert float(said[said.index("of") + 1]) > 0.999
        steps = [re.search(r"together (.*),", remark)[1] for remark in found.remarks[1:3]]
        np.testing.assert_allclose(found.changes.sum(1), [float(each) for each in steps], rtol=5e-3)

    def test_another_order_of_the_batches_is_noticed(self, trained, monkeypatch):
        right = recorded_steps.batches

        def wrong(pairs, config, shift=0):
            return right(pairs, config, shift + 1)

        monkeypatch.setattr(recorded_steps, "batches", wrong)
        with pytest.raises(UserError, match="not those that these pairs make"):
            ntk.attribute(trained, **QUICK, over="steps")

    @pytest.mark.slow
    def test_a_run_with_dropout_is_replayed_and_another_order_still_noticed(
        self, trained, tmp_path, monkeypatch
    ):
        config = SFTConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            save_at=[12],
            learning_rate=2e-3,
            lora_dropout=0.1,
            **SETTINGS | {"max_steps": 12},
        )
        base = str(trained.parent / "base")
        train_sft(base, world.general(10), world.safe(6), config, callbacks=[StepCallback()])
        found = ntk.attribute(tmp_path / "run", **QUICK, over="steps")
        assert "dropout is not replayed" in found.remarks[1]
        right = recorded_steps.batches

        def wrong(pairs, config, shift=0):
            return right(pairs, config, shift + 1)

        monkeypatch.setattr(recorded_steps, "batches", wrong)
        with pytest.raises(UserError, match="not those that these pairs make"):
            ntk.attribute(tmp_path / "run", **QUICK, over="steps")

    def test_a_run_without_recorded_steps_says_how_to_get_them(self, trained, tmp_path):
        with pytest.raises(UserError, match="StepCallback"):
            ntk.attribute(trained, **QUICK, over="steps", recorded_steps=tmp_path)
