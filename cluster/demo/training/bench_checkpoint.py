"""Makes the *bench geometry*: random weights whose pictures cost as many decode steps as those of the 32B model.

    python -m cluster.demo.training.bench_checkpoint FOLDER

On the GPUs that the 32B model runs on, encoding one 448×448 picture takes as long as about 20 to 40 decode steps, and
reading its 256 tokens about one. On a core, arithmetic is dear beside the fixed cost of a step; so the language model
here is smaller than the demo's, whose tower it has, and pictures keep their pixels. The answers mean nothing: restrict
``allowed_token_ids`` to letters, or half-finished characters hold text back.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from cluster.checkpoint import DEMO_CHECKPOINT
from cluster.demo.training.model import new_config, new_model, save_checkpoint
from cluster.demo.training.settings import PROCESSOR

SEED: Final = 0
MIN_PIXELS: Final = 56 * 56
MAX_PIXELS: Final = 448 * 448
"""256 tokens."""

TEXT: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "layer_types": ["full_attention"] * 2,
}
VISION: Final[dict[str, Any]] = {"out_hidden_size": TEXT["hidden_size"]}
"""What differs from the demo. ``loadtest.bench`` measures what a picture costs in decode steps, and reports it."""


def make(folder: Path) -> None:
    """Writes the checkpoint; the same folder and library versions give the same bytes."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    config = new_config(tokenizer)
    for part, changes in ((config.text_config, TEXT), (config.vision_config, VISION)):
        for name, value in changes.items():
            setattr(part, name, value)
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    processor = PROCESSOR | {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "size": size}
    save_checkpoint(new_model(config, SEED), tokenizer, folder, processor)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.demo.training.bench_checkpoint", description="Makes the bench geometry."
    )
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
