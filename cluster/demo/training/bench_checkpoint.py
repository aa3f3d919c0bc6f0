"""Makes the *bench geometry*: a random model in which a picture costs as many decode steps as in the 32B model.

    python -m cluster.demo.training.bench_checkpoint FOLDER

On the GPUs that the 32B model runs on, encoding one 448×448 picture takes as long as about 20 to 40 decode steps, and
reading its 256 tokens takes about one. On a CPU core, arithmetic is expensive compared with the fixed cost of a step.
The vision tower is therefore the demo's, the language model is smaller than the demo's, and pictures keep their pixels.
The answers mean nothing. Restrict ``allowed_token_ids`` to letters; otherwise unfinished characters delay text.
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
"""The most pixels of a picture: 256 tokens."""

TEXT: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "layer_types": ["full_attention"] * 2,
}
VISION: Final[dict[str, Any]] = {"out_hidden_size": TEXT["hidden_size"]}
"""The settings of the vision tower that differ from the demo's. ``loadtest.bench`` measures the cost of a picture in
decode steps."""


def make(folder: Path) -> None:
    """Writes the checkpoint; the same library versions always write the same bytes."""
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
