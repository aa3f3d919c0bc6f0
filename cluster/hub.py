"""Brings a checkpoint from the Hugging Face Hub to this machine: no more of it than a pool needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

SETTINGS: Final = ("*.json", "*.jinja", "*.txt")
"""All but the weights: configurations, tokenizer, chat template. A few megabytes."""

INDEX: Final = "model.safetensors.index.json"
ONE_FILE: Final = "model.safetensors"


def fetch(name: str, revision: str | None, prefixes: tuple[str, ...] = ()) -> Path:
    """A checkpoint's directory in the Hub's cache, fetched on first use.

    Args:
        name: Such as ``Qwen/Qwen2.5-VL-32B-Instruct``.
        revision: A commit, tag or branch; the main branch, if none.
        prefixes: Weight files are fetched if they hold a weight whose name starts with one of these; ``""`` fetches all.

    Raises:
        HfHubHTTPError, LocalEntryNotFoundError: The Hub does not have it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # slow to import, and the demo checkpoint does without

    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(SETTINGS)))
    if prefixes:
        snapshot_download(name, revision=folder.name, allow_patterns=weight_files(folder, prefixes))
    return folder


def weight_files(folder: Path, prefixes: tuple[str, ...]) -> list[str]:
    """The files of a checkpoint that hold weights with such names, by its index; a small checkpoint is one file without one."""
    index = folder / INDEX
    if not index.exists():
        return [ONE_FILE]
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return sorted({file for weight, file in places.items() if weight.startswith(prefixes)})
