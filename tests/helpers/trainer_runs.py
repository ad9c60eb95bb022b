"""A Trainer that trains a tiny model for four steps, for tests of what is measured meanwhile."""

from tiny_runs import TEXTS, tiny_adapter, tiny_model, tiny_tokenizer
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from ntkprobe import PromptSet

PROMPTS = PromptSet.from_texts(TEXTS)


def train(folder, model, *callbacks, resume=False, **changes):
    """Four steps, saved twice, one checkpoint kept; return the weights."""
    tokenizer = tiny_tokenizer()
    rows = [tokenizer(text) for texts in TEXTS.values() for text in texts]
    data = [{**row, "labels": row["input_ids"]} for row in rows]
    arguments = {
        "output_dir": str(folder),
        "max_steps": 4,
        "save_steps": 2,
        "save_total_limit": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.05,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    Trainer(
        model=model.train(),
        args=TrainingArguments(**arguments),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    ).train(resume_from_checkpoint=resume)
    return {name: value.clone() for name, value in model.named_parameters()}


def adapter():
    return tiny_adapter(tiny_model(), seed=1, lora_dropout=0.3)
