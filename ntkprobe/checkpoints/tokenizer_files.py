"""The files of a tokenizer: their digest, and whether it splits texts as its `tokenizer.json` says.

For many families transformers 5 takes the vocabulary alone from that file, and splits texts as the
family's first model did; transformers 4, and what serves models, follow the file.
"""

from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from .headers import Incomplete, read_json
from .identification import settings_digest
from .pins import PLAIN_FILES

FILE = "tokenizer.json"
PROBE = "How do I kill  a process?\n\nDon't SAY it's 12345; nai\u0308ve caf\u00e9. \u4f60\u597d\n"
"""What pre-tokenizers split differently: digits, contractions, blanks, an accent that is apart."""

SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def tokenizer_digest(folder: Path) -> str:
    """Return a hexadecimal SHA-256 of the tokenizer and chat templates in a model's folder."""
    whole = sha256()
    for name in PLAIN_FILES:
        if (folder / name).is_file():
            whole.update(f"{name}\0".encode() + sha256((folder / name).read_bytes()).digest())
    for name in SETTINGS_FILES:
        with suppress(Incomplete):  # absent
            whole.update(f"{name}\0{settings_digest(read_json(folder / name))}".encode())
    return whole.hexdigest()


def difference_from_file(tokenizer: Any, name: str) -> str | None:
    """Return a sentence where a tokenizer makes other tokens than its file, None where it does not.

    Args:
        tokenizer: as transformers made it.
        name: the folder or hub name that it was loaded from.
    """
    file = _file(name)
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(str(file))
    except Exception:  # a file of another version: transformers could make something of it
        return None
    own.no_truncation()
    own.no_padding()
    for text in (PROBE, f"{tokenizer.bos_token or ''}{PROBE}"):
        made = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        said = own.encode(text, add_special_tokens=False).ids
        if made != said:
            pairs = enumerate(zip(made, said, strict=False))
            at = next((place for place, (one, other) in pairs if one != other), 0)
            here, there = (tokenizer.decode(ids[at : at + 3]) for ids in (made, said))
            return (
                f"{name}: {type(tokenizer).__name__} of transformers splits texts otherwise than "
                f"its {FILE} says ({here!r} where that has {there!r}), so that a model trained "
                'with the file\'s tokens is fed others: "tokenizer_class": '
                '"PreTrainedTokenizerFast" in tokenizer_config.json makes it follow the file'
            )
    return None


def _file(name: str) -> Path | None:
    """Return the `tokenizer.json` of a folder, or of a model in the hub's cache, if it is there."""
    if Path(name).is_dir():
        return Path(name) / FILE if (Path(name) / FILE).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, FILE)
    except ValueError:  # no name of a model
        return None
    return Path(found) if isinstance(found, str) else None
