"""The layout of pictures in the vision tower: the row of each patch, and the spans of rows for attention."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    from cluster.messages import Grid


@dataclass(frozen=True, slots=True)
class AttentionSpans:
    """Consecutive spans of rows. Rows of one span attend to each other, and to no other row.

    ``runs`` are pairs of a length in rows and a number of spans of that length that follow each other. ``bounds`` and
    ``longest`` say the same for kernels that take spans of various lengths: ``bounds`` [num_spans + 1] int32 holds the
    first row of each span, and ``longest`` is the length of the longest.
    """

    runs: tuple[tuple[int, int], ...]
    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> AttentionSpans:
        """Spans of the given lengths, in their order."""
        runs = tuple((length, len([*group])) for length, group in groupby(lengths))
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(runs, bounds.to(device), max(lengths))

    @classmethod
    def join(cls, parts: Sequence[AttentionSpans], firsts: Sequence[int]) -> AttentionSpans:
        """Joins the spans of several pictures.

        Args:
            parts: The spans of each picture.
            firsts: The first row of each picture.
        """
        runs = [run for part in parts for run in part.runs]
        joined = tuple((length, sum(count for _, count in group)) for length, group in groupby(runs, key=itemgetter(0)))
        bounds = torch.cat(
            [parts[0].bounds[:1], *(part.bounds[1:] + first for part, first in zip(parts, firsts, strict=True))]
        )
        return cls(joined, bounds, max(part.longest for part in parts))


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout of one or several pictures in rows: picture by picture, and in each picture the shortest windows
    first.

    ``order`` [num_patches] is the patch in each row. ``tokens`` [num_tokens] is the position of each token of the
    pictures, counted in tokens. ``angles`` [num_patches, 1, 1, head_dim / 2] complex64 are the rotary factors of the
    rows. ``windows`` and ``pictures`` are the spans of rows for windowed and for full attention.
    """

    order: Tensor
    tokens: Tensor
    angles: Tensor
    windows: AttentionSpans
    pictures: AttentionSpans


def make_plan(grid: Grid, config: Qwen2_5_VLVisionConfig, device: torch.device) -> Plan:
    """Lays out one picture.

    Args:
        grid: Its patches as (1, height, width).
        config: The configuration of the vision tower.
        device: The device for the tensors.
    """
    _, height, width = grid
    merge = config.spatial_merge_size
    unit = merge**2
    # [token_rows, token_columns]
    tokens = torch.arange(height * width // unit).view(height // merge, width // merge)
    side = config.window_size // config.patch_size // merge
    tiles = (tile for band in torch.split(tokens, side) for tile in torch.split(band, side, dim=1))
    windows = sorted(tiles, key=torch.Tensor.numel)
    laid = torch.cat([window.flatten() for window in windows])  # [num_tokens]
    order = (laid[:, None] * unit + torch.arange(unit)).flatten()  # [num_patches]
    # The processor puts the patches of a token next to each other. x and y are their places in the picture:
    # [num_patches]
    y = torch.arange(height).view(-1, 1, merge, 1).expand(-1, width // merge, -1, merge).flatten()[order]
    x = torch.arange(width).view(1, -1, 1, merge).expand(height // merge, -1, merge, -1).flatten()[order]
    half = config.hidden_size // config.num_heads // 2
    frequencies = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    # [num_patches, 1, 1, head_dim / 2]
    angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=1)[:, None, None]
    return Plan(
        order=order.to(device),
        tokens=laid.argsort().to(device),
        angles=torch.complex(angles.cos(), angles.sin()).to(device),
        windows=AttentionSpans.of([window.numel() * unit for window in windows], device),
        pictures=AttentionSpans.of([height * width], device),
    )


def join(plans: Sequence[Plan]) -> Plan:
    """Lays out several pictures one after the other."""
    if len(plans) == 1:
        return plans[0]
    unit = len(plans[0].order) // len(plans[0].tokens)
    firsts = [*accumulate((len(plan.order) for plan in plans[:-1]), initial=0)]
    return Plan(
        order=torch.cat([plan.order + first for plan, first in zip(plans, firsts, strict=True)]),
        tokens=torch.cat([plan.tokens + first // unit for plan, first in zip(plans, firsts, strict=True)]),
        angles=torch.cat([plan.angles for plan in plans]),
        windows=AttentionSpans.join([plan.windows for plan in plans], firsts),
        pictures=AttentionSpans.join([plan.pictures for plan in plans], firsts),
    )
