"""Trains the demo model: ``python -m cluster.demo.train`` on two cores, in under an hour.

Two stages. First the vision tower alone, under a small classification head for each kind of question, because answers
alone teach it too slowly; then the whole model, on the answers of conversations. A second process draws the pictures.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from cluster.demo import forward
from cluster.demo.answer import accuracy
from cluster.demo.batches import IGNORED, Batch, Batches
from cluster.demo.classes import CLASSES, KINDS
from cluster.demo.model import new_config, new_model, save_checkpoint
from cluster.demo.tokenizer import new_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
VISION_STEPS: Final = 2800
ANSWER_STEPS: Final = 6000
SEED: Final = 1
REPORT_EVERY: Final = 25
MEASURE_EVERY: Final = 1500


def main() -> None:
    """Trains, saves, and says how well it went."""
    options = _options()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    tokenizer = new_tokenizer()
    model = new_model(new_config(tokenizer), SEED)
    save_checkpoint(model, tokenizer, options.out)
    vision_batches = Batches(tokenizer, f"vision {SEED}", options.vision_steps, conversations=False)
    teach_vision(model, vision_batches)
    save_checkpoint(model, tokenizer, options.out)
    answer_batches = Batches(tokenizer, f"answers {SEED}", options.answer_steps, conversations=True)
    teach_answers(model, tokenizer, answer_batches, options.out)
    round_weights(model)
    save_checkpoint(model, tokenizer, options.out)
    _say(f"trained in {(time.perf_counter() - started) / 60:.1f} min; measuring the rounded weights")
    _say(_as_line(accuracy(model, tokenizer, num=400)))


def teach_vision(model: Qwen2_5_VLForConditionalGeneration, batches: Batches) -> None:
    """First stage: the vision tower learns to tell each kind's answers apart."""
    visual = model.model.visual
    heads = nn.ModuleDict({kind: Head(256, len(CLASSES[kind])) for kind in KINDS})
    optimizers = _optimizers([(visual, 2e-3), (heads, 1e-3)])
    progress = Progress("vision", len(batches))
    for step, batch in enumerate(_stream(batches)):
        _set_rate(optimizers, step, len(batches))
        patches, grid = batch.pictures[0]
        labels = {kind: torch.from_numpy(classes) for kind, classes in batch.labels[0].items()}
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = forward.encode(visual, torch.from_numpy(patches), grid).float()
        losses = {}
        for kind, head in heads.items():
            known = labels[kind] != IGNORED
            if known.any():
                logits, classes = head(embeddings[known]), labels[kind][known]
                losses[kind] = cross_entropy(logits, classes, reduction="sum") / len(known)
                progress.count(kind, logits, classes)
        _update(optimizers, sum(losses.values(), torch.zeros(())), (visual, heads))
        progress.step(len(patches))


def teach_answers(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, batches: Batches, out: Path
) -> None:
    """Second stage: the whole model learns to answer; only answers count."""
    optimizers = _optimizers([(model.model.visual, 5e-4), (model.model.language_model, 1.5e-3)])
    progress = Progress("answers", len(batches))
    for step, batch in enumerate(_stream(batches)):
        _set_rate(optimizers, step, len(batches))
        ids, targets, positions = (torch.from_numpy(part) for part in (batch.ids, batch.targets, batch.positions))
        asked = targets != IGNORED
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward.answer_logits(model, ids, positions, _embed(model, batch), asked).float()
        loss = cross_entropy(logits, targets[asked])
        progress.count("tokens", logits, targets[asked])
        _update(optimizers, loss, (model,))
        progress.step(len(batch.ids))
        if (step + 1) % MEASURE_EVERY == 0 and step + 1 < len(batches):
            save_checkpoint(model, tokenizer, out)
            _say(_as_line(accuracy(model, tokenizer, num=100)))


class Head(nn.Module):
    """Four learned queries look over a picture's tokens [batch, tokens, width] and a linear layer names the class."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(4, width) * 0.02)
        self.classify = nn.Linear(4 * width, num_classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        normed = self.norm(embeddings)
        attention = torch.softmax(normed @ self.queries.T, 1)
        logits: Tensor = self.classify((attention.transpose(1, 2) @ normed).flatten(1))
        return logits


def round_weights(model: nn.Module) -> None:
    """Rounds float32 weights to what bfloat16 can hold, so that what is measured is what is stored."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16).float())


class Progress:
    """Prints, now and then, how far a stage is, how fast it runs and how often it was right lately."""

    def __init__(self, stage: str, num_steps: int) -> None:
        self._stage, self._num_steps = stage, num_steps
        self._started, self._steps, self._samples = time.perf_counter(), 0, 0
        self._seen: dict[str, int] = {}
        self._right: dict[str, int] = {}

    def count(self, kind: str, logits: Tensor, classes: Tensor) -> None:
        """Adds the outcome of [num, classes] logits against [num] right classes."""
        self._seen[kind] = self._seen.get(kind, 0) + len(classes)
        self._right[kind] = self._right.get(kind, 0) + int((logits.detach().argmax(-1) == classes).sum())

    def step(self, num_samples: int) -> None:
        """Marks the end of a step."""
        self._steps += 1
        self._samples += num_samples
        if self._steps % REPORT_EVERY == 0:
            seconds = time.perf_counter() - self._started
            rates = _as_line({kind: self._right[kind] / seen for kind, seen in sorted(self._seen.items())})
            _say(
                f"{self._stage} {self._steps}/{self._num_steps} {seconds:.0f} s {self._samples / seconds:.0f} samples/s  {rates}"
            )
            self._seen, self._right = {}, {}


def _stream(batches: Batches) -> Iterator[Batch]:
    """Batches in order, drawn ahead by another process."""
    yield from DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=16, collate_fn=_as_is)


def _as_is(batch: Batch) -> Batch:
    return batch


def _embed(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> Tensor | None:
    """All pictures' embeddings in the order of the picture tokens: [tokens, hidden]."""
    embedded = [forward.encode(model.model.visual, torch.from_numpy(patches), grid) for patches, grid in batch.pictures]
    return torch.cat(embedded, 1).flatten(0, 1) if embedded else None


def _optimizers(parts: list[tuple[nn.Module, float]]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else; each part has its own peak rate.

    Source: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), scaled to AdamW's step as in arXiv 2502.16982.
    """
    matrices, others = [], []
    for part, rate in parts:
        for name, weight in part.named_parameters():
            is_matrix = weight.ndim == 2 and ("blocks." in name or "layers." in name or "merger." in name)
            (matrices if is_matrix else others).append({"params": [weight], "peak": rate, "lr": rate})
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _set_rate(optimizers: list[torch.optim.Optimizer], step: int, num_steps: int) -> None:
    """A hundred steps of warm-up, then a cosine down to a fiftieth."""
    part = step / num_steps
    factor = min((step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _update(optimizers: list[torch.optim.Optimizer], loss: Tensor, parts: Iterable[nn.Module]) -> None:
    for part in parts:
        part.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for part in parts:
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def _as_line(rates: dict[str, float]) -> str:
    return "  ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items())


def _say(line: str) -> None:
    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--vision-steps", type=int, default=VISION_STEPS)
    parser.add_argument("--answer-steps", type=int, default=ANSWER_STEPS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
