"""Chat templates in files: the package's own, and the user's."""

from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from ..errors import UserError


def shipped_templates() -> dict[str, str]:
    """Return the templates of A.3 that come with the package: names and Jinja texts."""
    folder = files("ntkprobe.presets") / "templates"
    found = [file for file in folder.iterdir() if file.name.endswith(".jinja")]
    return {
        file.name.removesuffix(".jinja"): file.read_text("utf-8")
        for file in sorted(found, key=lambda file: file.name)
    }


def template_from_file(path: Path) -> tuple[str, str]:
    """Return a template's name, with the digest of its text, and its Jinja text.

    Args:
        path: of a Jinja file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot read the template {path}: give auto, chat, raw, one of "
            f"{list(shipped_templates())}, or a Jinja file"
        ) from error
    return f"{path.name}#{sha256(source.encode()).hexdigest()[:8]}", source
