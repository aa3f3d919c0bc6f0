"""Trains the demo model in under an hour on two cores.

    python -m cluster.demo.training.train

Training has two stages. The first trains the vision tower alone, with classification heads, because answers alone would
teach it too slowly. It begins with large black-and-white shapes in the middle of small pictures. The second stage
trains answers to conversations. For half of its steps only the language model learns, to read the tower's output; for
the other half both learn, and the heads stay on. Each core runs one rank, and each rank has a process that draws its
pictures.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from cluster.demo.training import forward, ranks
from cluster.demo.training.answer import accuracy
from cluster.demo.training.batches import IGNORED, Batch, Batches
from cluster.demo.training.heads import Heads
from cluster.demo.training.model import new_config, new_model, round_weights, save_checkpoint
from cluster.demo.training.progress import Progress, as_line, say
from cluster.demo.training.tokenizer import new_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import Qwen2_5_VLForConditionalGeneration

CHECKPOINT: Final = Path(__file__).parents[1] / "checkpoint"
VISION_STEPS: Final = 2800
ANSWER_STEPS: Final = 1900
SEED: Final = 1

FROZEN_SHARE: Final = 0.5
"""The share of the second stage in which the vision tower does not change. This is faster, and the gradients of an
untrained language model would harm the tower."""

HEADS_SHARE: Final = 0.5
"""The weight of the heads' loss in the second stage; the answers' loss has weight 1."""


def main() -> None:
    """Trains the model, saves it, and prints its accuracy."""
    options = _options()
    # oneDNN keeps one kernel per shape, and there are over a thousand shapes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")
    ranks.run(train, options.ranks, options)


def train(rank: int, options: argparse.Namespace) -> None:
    """Runs the training of one rank; the first rank also prints, saves and measures."""
    started = time.perf_counter()
    tokenizer = new_tokenizer()
    model = new_model(new_config(tokenizer), SEED)
    heads = Heads(model.config.vision_config.out_hidden_size)
    taught = options.scratch / "vision.pt" if options.scratch else None
    if taught and taught.exists():
        _resume(taught, model, heads)
    else:
        teach_vision(
            model, heads, Batches(tokenizer, f"vision {SEED}", rank, options.vision_steps, conversations=False)
        )
        if taught and rank == 0:
            torch.save({"model": model.state_dict(), "heads": heads.state_dict()}, taught)
    batches = Batches(tokenizer, f"answers {SEED}", rank, options.answer_steps, conversations=True)
    teach_answers(model, heads, batches)
    if rank > 0:
        return
    round_weights(model)
    save_checkpoint(model, tokenizer, options.out)
    say(f"trained in {(time.perf_counter() - started) / 60:.1f} min; measuring the rounded weights")
    say(as_line(accuracy(model, tokenizer, num=400)))


def teach_vision(model: Qwen2_5_VLForConditionalGeneration, heads: Heads, batches: Batches) -> None:
    """Runs the first stage: the vision tower learns to tell the answers of each kind apart."""
    visual = model.model.visual
    optimizers = _optimizers([(visual, 4e-3), (heads, 6e-3)])
    progress = Progress("vision", len(batches))
    for step, batch in enumerate(_stream(batches)):
        _set_rate(optimizers, step, len(batches))
        patches, grid = batch.pictures[0]
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = forward.encode(visual, torch.from_numpy(patches), grid).float()
        _update(optimizers, heads.loss(embeddings, grid, batch.labels[0], progress, by_place=True), (visual, heads))
        progress.step(len(patches))


def teach_answers(model: Qwen2_5_VLForConditionalGeneration, heads: Heads, batches: Batches) -> None:
    """Runs the second stage: the whole model learns to answer."""
    optimizers = _optimizers([(model.model.visual, 1.5e-3), (model.model.language_model, 5e-3), (heads, 3e-3)])
    progress = Progress("answers", len(batches))
    for step, batch in enumerate(_stream(batches)):
        _set_rate(optimizers, step, len(batches))
        frozen = step < FROZEN_SHARE * len(batches)
        parts = (model.model.language_model,) if frozen else (model, heads)
        _update(optimizers, _answer_loss(model, heads, batch, progress, frozen), parts)
        progress.step(len(batch.ids))


def _answer_loss(
    model: Qwen2_5_VLForConditionalGeneration, heads: Heads, batch: Batch, progress: Progress, frozen: bool
) -> Tensor:
    """The cross-entropy of the answers' tokens; if the tower is not frozen, plus a share of the heads' loss on the same
    pictures."""
    ids, targets, positions = (torch.from_numpy(part) for part in (batch.ids, batch.targets, batch.positions))
    asked = targets != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        visual = model.model.visual
        with torch.set_grad_enabled(not frozen):
            embedded = [forward.encode(visual, torch.from_numpy(patches), grid) for patches, grid in batch.pictures]
        pictures = torch.cat(embedded, 1).flatten(0, 1) if embedded else None
        logits = forward.answer_logits(model, ids, positions, pictures, asked).float()
    progress.count("tokens", logits, targets[asked])
    loss = cross_entropy(logits, targets[asked])
    if frozen:
        return loss
    for embeddings, (_, grid), labels in zip(embedded, batch.pictures, batch.labels, strict=True):
        loss = loss + HEADS_SHARE / len(embedded) * heads.loss(
            embeddings.float(), grid, labels, progress, by_place=False
        )
    return loss


def _stream(batches: Batches) -> Iterator[Batch]:
    """Yields the batches in order; another process draws them in advance."""
    as_is: Any = _as_is  # torch types it for lists of samples, but a dataset of batches hands it one batch
    yield from DataLoader(
        batches, batch_size=None, num_workers=1, prefetch_factor=16, collate_fn=as_is, multiprocessing_context="fork"
    )


def _as_is(batch: Batch) -> Batch:
    return batch


def _optimizers(parts: list[tuple[nn.Module, float]]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, and AdamW at a quarter of the learning rate for all other weights.

    Source: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), with the steps of arXiv 2502.16982.
    """
    matrices, others = [], []
    for part, rate in parts:
        for name, weight in part.named_parameters():
            if weight.ndim == 2 and any(place in name for place in ("blocks.", "layers.", "merger.")):
                matrices.append({"params": [weight], "peak": rate})
            else:
                others.append({"params": [weight], "peak": rate / 4})
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _set_rate(optimizers: list[torch.optim.Optimizer], step: int, num_steps: int) -> None:
    """Sets the learning rate of a step: a warm-up of a hundred steps, then a cosine down to a fiftieth of the peak."""
    part = step / num_steps
    factor = min((step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _update(optimizers: list[torch.optim.Optimizer], loss: Tensor, parts: Sequence[nn.Module]) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    ranks.average_gradients(parts)
    for part in parts:
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        # Weights that the next step does not train need this too, because a stale gradient would move them.
        optimizer.zero_grad(set_to_none=True)


def _resume(taught: Path, model: nn.Module, heads: Heads) -> None:
    saved = torch.load(taught)
    model.load_state_dict(saved["model"])
    heads.load_state_dict(saved["heads"])
    say(f"the first stage is taken from {taught}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument(
        "--scratch", type=Path, help="folder for the result of the first stage, to start again from there"
    )
    parser.add_argument("--vision-steps", type=int, default=VISION_STEPS)
    parser.add_argument("--answer-steps", type=int, default=ANSWER_STEPS)
    parser.add_argument("--ranks", type=int, default=2, help="processes that share a step; the weights depend on it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
