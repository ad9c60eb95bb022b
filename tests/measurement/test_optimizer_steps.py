"""The steps that optimisers take: recorded as they are, and predicted to first order."""

import numpy as np
import pytest
import torch
from architectures import build, ragged_prompts, with_lora
from training_world import general, safe, saved
from transformers import Trainer, TrainingArguments

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.kernel import last_logits
from ntkprobe.measurement.influence import apply_step, predict_step, read_steps, record_step
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.refusal import reduce_phrases, score_phrases
from ntkprobe.training.callbacks import trained
from ntkprobe.training.sft import SFTConfig, train_sft

OBSERVED = ragged_prompts()
PHRASES = [(5, 9), (5,), (6, 1, 3)]
SIZES = np.geomspace(1e-2, 1e-4, 4)
OPTIMISERS = {
    "sgd": lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9, nesterov=True),
    "adamw": lambda ps, lr: torch.optim.AdamW(ps, lr=0.1 * lr, weight_decay=0.1),
}


def adapter():
    return with_lora(build("qwen2-tied", torch.float64)).double()


def stepped(model, optimiser, size):
    """Take one real step of a batch of two pairs, and return it as it was recorded."""
    moving = [p for p in model.parameters() if p.requires_grad]
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    model(input_ids=ids, labels=ids).loss.backward()
    with record_step(model) as step:
        OPTIMISERS[optimiser](moving, size).step()
    model.zero_grad()
    return step


@torch.no_grad()
def measured(model):
    """Return log π of every prompt's first token, and log P_refuse."""
    refusals = reduce_phrases(score_phrases(model, OBSERVED, PHRASES), PHRASES)
    return last_logits(model, OBSERVED).log_softmax(-1), refusals


def predicted(model, step, **settings):
    given = {"observed": OBSERVED, "tokens": "all", "phrases": PHRASES, **settings}
    found = predict_step(model, None, step=step, **given)
    return found.log_probability, found.refusal


def residuals(optimiser, prediction=predicted):
    """Return by how much prediction and change differ, for real steps of several sizes."""
    rows = []
    with Float64Throughout():
        for size in SIZES:
            model, moved = adapter(), adapter()
            before = measured(model)
            expected = prediction(model, stepped(moved, optimiser, size))
            parts = zip(measured(moved), before, expected, strict=True)
            rows.append([float((after - b - e).norm()) for after, b, e in parts])
    return np.polyfit(np.log(SIZES), np.log(rows), 1)[0]


class TestPrediction:
    @pytest.mark.slow
    @pytest.mark.parametrize("optimiser", OPTIMISERS)
    def test_what_a_step_leaves_unexplained_is_of_second_order(self, optimiser):
        assert (residuals(optimiser) >= 1.9).all()

    @pytest.mark.slow
    def test_the_gradient_alone_does_not_explain_adamws_step(self):
        def by_gradient(model, step):
            plain = stepped(adapter(), "sgd", 1.0)
            length, own = (sum(v.square().sum() for v in s.values()) for s in (step, plain))
            scale = float((length / own).sqrt())  # as long, along the gradient
            return predicted(model, {name: scale * v for name, v in plain.items()})

        assert (residuals("adamw", by_gradient) < 1.1).all()

    def test_batches_change_nothing(self):
        model = adapter()
        step = stepped(adapter(), "adamw", 1e-3)
        with Float64Throughout():
            one, all_at_once = (predicted(model, step, batch_size=n)[1] for n in (1, 4))
        torch.testing.assert_close(one, all_at_once)

    def test_forward_and_reverse_agree(self):
        model, step = adapter(), stepped(adapter(), "adamw", 1e-3)
        with Float64Throughout():
            both = [
                predict_step(model, None, observed=OBSERVED, step=step, phrases=PHRASES, mode=mode)
                for mode in ("forward", "reverse")
            ]
            before = measured(model)[1]
        torch.testing.assert_close(*(found.refusal for found in both))
        for found in both:
            torch.testing.assert_close(found.before["literal"], before)

    def test_it_is_what_influence_predicts_for_a_step_of_descent_on_one_pair(self):
        model, before, pair = adapter(), adapter(), ([3, 1], [4, 1, 5])
        with Float64Throughout():
            per_unit = ntk.influence(
                model, None, observed=OBSERVED, updated=[pair], phrases=PHRASES, loss="mean"
            )
            ids = torch.tensor([[*pair[0], *pair[1]]])
            labels = torch.tensor([[-100, -100, *pair[1]]])
            model(input_ids=ids, labels=labels).loss.backward()
            moved = [p for p in model.parameters() if p.requires_grad]
            with record_step(model) as step:
                torch.optim.SGD(moved, lr=1.0).step()
            change = predicted(before, step)
        torch.testing.assert_close(change[0], per_unit.log_probability[0])
        torch.testing.assert_close(change[1], per_unit.refusal[0])


class TestRecording:
    def test_steps_of_a_training_with_adamw_add_up_to_what_it_changed(self, tmp_path):
        model = with_lora(build("qwen2-tied")).train()
        before = {name: p.detach().clone() for name, p in trained(model).items()}
        rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 16, (8, 5))]
        settings = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            max_steps=3,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model, settings, train_dataset=rows, callbacks=[ntk.StepCallback()]).train()
        steps = dict(read_steps(tmp_path / "run-steps"))
        assert list(steps) == [1, 2, 3] and set(steps[1]) == set(before)
        for name, parameter in trained(model).items():
            total = before[name] + sum(step[name] for step in steps.values())
            torch.testing.assert_close(total, parameter.detach(), rtol=0, atol=1e-6)
        assert any(bool(change.any()) for change in steps[2].values())

    @pytest.mark.slow
    def test_recording_changes_nothing_about_an_alignment(self, tmp_path):
        base, finals = saved(tmp_path / "base", num_hidden_layers=2), []
        for name, callbacks in (("a", []), ("b", [ntk.StepCallback(tmp_path / "steps")])):
            config = SFTConfig(
                output_dir=str(tmp_path / name),
                n_general=4,
                n_safe=4,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=1,
                num_train_epochs=1,
                max_length=48,
                save_strategy="no",
                disable_tqdm=True,
            )
            train_sft(base, general(4), safe(4), config, callbacks=callbacks)
            finals.append((tmp_path / name / "final" / "adapter_model.safetensors").read_bytes())
        assert finals[0] == finals[1]
        assert [number for number, _ in read_steps(tmp_path / "steps")] == [1, 2]

    def test_a_step_is_applied_as_it_was_taken(self):
        one, other = adapter(), adapter()
        apply_step(other, stepped(one, "adamw", 1e-3))
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b)

    def test_a_step_in_bfloat16_is_recorded_whole_and_applied_bit_for_bit(self):
        one, other = build("llama", torch.bfloat16), build("llama", torch.bfloat16)
        before = {name: p.detach().double() for name, p in one.named_parameters()}
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        one(input_ids=ids, labels=ids).loss.backward()
        with record_step(one) as step:
            torch.optim.AdamW(one.parameters(), lr=3e-2).step()
        for name, parameter in one.named_parameters():
            assert torch.equal(step[name].double(), parameter.detach().double() - before[name])
        apply_step(other, step)
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_mistakes_are_told_in_one_line(self, tmp_path):
        with pytest.raises(UserError, match="no steps in"):
            list(read_steps(tmp_path))
        (tmp_path / "step-00000002.safetensors").touch()
        with pytest.raises(UserError, match="lacks step 1"):
            list(read_steps(tmp_path))
        with pytest.raises(UserError, match="which this model does not have"):
            predicted(build("llama"), {"nowhere": torch.zeros(2)})
        with pytest.raises(UserError, match="moves nothing"):
            predicted(build("llama"), {})
        with pytest.raises(UserError, match="no mode 'sideways'"):
            predicted(build("llama"), {}, mode="sideways")
