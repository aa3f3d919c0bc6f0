"""Makes the *bench geometry*: random weights whose pictures cost as many decode steps as those of the 32B model.

    python -m cluster.demo.bench_checkpoint FOLDER

On the GPUs that the 32B model runs on, encoding one 448×448 picture takes as long as about 20 to 40 decode steps. So it does
here on one core: the language model is the demo's in size, the tower is wider, and pictures are not scaled down as the demo's
are. The answers mean nothing: restrict ``allowed_token_ids`` to letters, or half-finished characters hold text back.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from cluster.config import DEMO_CHECKPOINT
from cluster.demo.model import new_config, new_model, save_checkpoint
from cluster.demo.settings import PROCESSOR

SEED: Final = 0
MIN_PIXELS: Final = 56 * 56
MAX_PIXELS: Final = 448 * 448
"""256 tokens."""

VISION: Final[dict[str, Any]] = {
    "hidden_size": 224,
    "intermediate_size": 608,
}
"""What differs from the demo's tower. ``loadtest.bench`` measures what a picture costs in decode steps, and reports it."""


def make(folder: Path) -> None:
    """Writes the checkpoint; the same folder and library versions give the same bytes."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    config = new_config(tokenizer)
    for name, value in VISION.items():
        setattr(config.vision_config, name, value)
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    processor = PROCESSOR | {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "size": size}
    save_checkpoint(new_model(config, SEED), tokenizer, folder, processor)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.demo.bench_checkpoint", description="Makes the bench geometry.")
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
