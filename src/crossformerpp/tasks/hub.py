"""Models on the Hugging Face Hub, as hf-hub:USER/NAME."""

import re
from pathlib import Path

PREFIX = "hf-hub:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["model.safetensors", "config.json", "conformal.json", "thresholds.json"]


def is_on_hub(path: Path) -> bool:
    """Whether a path is such an address."""
    return str(path).startswith(PREFIX)


def fetch(path: Path) -> Path:
    """The folder of a model in the Hub's cache, downloaded where it is not there.

    Raises:
        ValueError: The address is none, there is no such model, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name = str(path).removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{path}: give {PREFIX}USER/NAME")
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except Exception as error:  # its errors have no common base but Exception
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: cannot be fetched from the Hugging Face Hub ({reason})") from None
