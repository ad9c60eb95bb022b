"""What a model is built like, read from its configuration alone."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from .gguf_files import describe, gguf_file
from .headers import Incomplete
from .safeguards import checked_config


def architecture_named(name: str) -> str | None:
    """Return the kind and size of a model, such as `llama, 30 layers of 576`.

    Args:
        name: a folder, a GGUF file or a hub name; the last is asked for at the hub.

    Returns:
        The same for two models of which one was trained from the other; None if it cannot be read.
    """
    try:
        if (file := gguf_file(name)) is not None:
            about = describe(file)
            sizes = (
                about.settings.get(f"{about.architecture}.{key}")
                for key in ("block_count", "embedding_length")
            )
            return _described(about.architecture, *sizes)
        config = _config(name)
    except (UserError, Incomplete, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    text = config.get_text_config()
    layers, width = (getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size"))
    return _described(config.model_type, layers, width)


def _config(name: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    from .loading import require_hub_name

    if not Path(name).is_dir():
        require_hub_name(name)
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    values = checked_config(Path(name) / "config.json")
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _described(kind: str, layers: Any, width: Any) -> str:
    return f"{kind}, {layers} layers of {width}"
