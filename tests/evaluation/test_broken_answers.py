"""Logits that are no numbers while questions are answered: the question is named by its number."""

import pytest
import torch
from architectures import build

from ntkprobe.errors import UserError
from ntkprobe.evaluation.answers import LocalModel, Question
from ntkprobe.evaluation.settings import AnswerSettings

BROKEN = 33


class Numbers:
    """A tokenizer and a template of texts that are numbers."""

    eos_token_id = pad_token_id = None

    def encode(self, tokenizer, text, max_length):
        return [int(word) for word in text.split()]

    def stop_ids(self, tokenizer):
        return []

    def stop_texts(self, tokenizer):
        return []

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("temperature", [0.0, 0.01], ids=["cached", "sampled"])
def test_the_question_is_named_by_its_number_not_by_its_place_in_a_batch(temperature):
    model = build("llama")
    model.get_input_embeddings().weight.data[BROKEN] = torch.nan
    texts = ["3 4 5 6 7 8 9", "3 4 5 6 7 8", f"3 4 5 {BROKEN}", "3 4 5", "3 4 6 9 9 9 9 9 9"]
    settings = AnswerSettings(max_new_tokens=4, temperature=temperature, seed=0)
    local = LocalModel(model, Numbers(), Numbers(), settings, batch_size=2)
    with pytest.raises(UserError, match="prompt 2 has NaN"):
        list(local.answer([Question(f"q{row}", text) for row, text in enumerate(texts)]))
