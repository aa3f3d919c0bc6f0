"""Loads the vision tower from a checkpoint, normalises patches, and turns them into embeddings.

In: ``Pixels`` (uint8 patches). Out: ``Embedding`` (one row per token that the language model reads).

No other part of the model is loaded. Of the larger libraries this needs only torch and transformers, so it also runs on
a GPU machine without Ray or vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import numpy as np
import torch
from safetensors import safe_open
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from cluster.checkpoint import weight_files
from cluster.encode.tower import Tower
from cluster.messages import Embedding, Pixels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from cluster.checkpoint import ProcessorSettings
    from cluster.config import Dtype

TOWER_PREFIXES = ("visual.", "model.visual.")
"""The beginnings of the names of the tower's tensors in a checkpoint: as Qwen publishes it, and as transformers 5 saves
it."""


class PictureEncoder:
    """The Qwen2.5-VL vision tower with the normalisation of its processor.

    Args:
        module: The vision tower of transformers, with its weights loaded.
        settings: The settings of the checkpoint's processor.

    Source: Qwen2.5-VL technical report (arXiv 2502.13923), section 2.1.1. The module is transformers' own.
    """

    def __init__(self, module: Qwen2_5_VisionTransformerPretrainedModel, settings: ProcessorSettings) -> None:
        self.parameter_names: Final = [name for name, _ in module.named_parameters()]
        self.bytes_per_patch: Final = module.config.out_hidden_size * module.dtype.itemsize / settings.merge_size**2
        """The bytes of an embedding per patch of its picture."""
        self._run = Tower(module)
        self._dtype = module.dtype
        self._settings = settings
        # As in the processor, one step per channel both scales from 0..255 and normalises. Each is [3, 1] float32.
        self._mean = (torch.tensor(settings.image_mean) * 255)[:, None].to(module.device)
        self._std = (torch.tensor(settings.image_std) * 255)[:, None].to(module.device)

    @classmethod
    def load(cls, checkpoint: Path, settings: ProcessorSettings, *, dtype: Dtype, device: str = "cpu") -> Self:
        """Loads the tower from a checkpoint's safetensors files; no other weights are read.

        Args:
            checkpoint: The checkpoint's folder.
            settings: The settings of its processor.
            dtype: The dtype of the tower's weights and of the embeddings.
            device: The torch device of the tower.

        Raises:
            FileNotFoundError: The checkpoint has no weights.
            RuntimeError: The names or shapes of the weights do not match the checkpoint's configuration.
        """
        config = Qwen2_5_VLConfig.from_pretrained(checkpoint).vision_config
        with torch.device("meta"):
            module = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, dtype=getattr(torch, dtype))
        module = module.to_empty(device=device)
        weights = {name: tensor.to(device, module.dtype) for name, tensor in read_tower_weights(checkpoint)}
        module.load_state_dict(weights)
        return cls(module, settings)

    @torch.inference_mode()
    def encode(self, batch: Sequence[Pixels]) -> list[Embedding]:
        """Encodes several pictures in one run of the tower.

        Args:
            batch: The pictures' patches, each [num_patches, 3 · patch · patch] uint8.

        Returns:
            One embedding per picture, in the same order. It holds [num_tokens, out_hidden_size] numbers of the tower's
            dtype as raw bytes, [num_tokens, out_hidden_size · itemsize] uint8; num_tokens is num_patches / merge².
        """
        # each of the rows [num_tokens, out_hidden_size]
        rows = self._run([self.normalise(pixels) for pixels in batch], [pixels.grid for pixels in batch])
        return [self._embedding(pixels, part) for pixels, part in zip(batch, rows, strict=True)]

    def check(self) -> None:
        """Encodes the smallest possible picture, to find out whether the tower works.

        Raises:
            Exception: The error of the tower.
        """
        settings = self._settings
        _, height, width = grid = (1, settings.merge_size, settings.merge_size)
        self.encode([Pixels("0" * 64, np.zeros((height * width, settings.patch_bytes), np.uint8), grid)])

    def normalise(self, pixels: Pixels) -> Tensor:
        """Normalises the patches of a picture with the mean and standard deviation of each channel.

        Args:
            pixels: The patches, [num_patches, 3 · patch · patch] uint8.

        Returns:
            [num_patches, 3 · patch · patch] in the tower's dtype, on its device.
        """
        patches = torch.tensor(pixels.patches, device=self._mean.device)  # [num_patches, 3 · patch · patch] uint8
        still = patches.view(pixels.num_patches, 3, -1).float()  # [num_patches, 3, patch · patch] float32
        return still.sub_(self._mean).div_(self._std).flatten(1).to(self._dtype)

    def _embedding(self, pixels: Pixels, rows: Tensor) -> Embedding:
        own = rows.cpu()  # [num_tokens, out_hidden_size]
        if own.untyped_storage().nbytes() > own.nbytes:
            # It is a view of the rows of the whole run, which would stay in memory as long as this embedding.
            own = own.clone()
        raw = own.view(torch.uint8).numpy()  # [num_tokens, out_hidden_size · itemsize]
        return Embedding(pixels.digest, raw, str(rows.dtype).removeprefix("torch."), pixels.grid)


def read_tower_weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and the tensor of each weight of the vision tower; no other tensor is read from disk.

    The name is the one inside the tower, without the prefix that it has in the checkpoint.

    Raises:
        FileNotFoundError: The folder does not contain the safetensors files with the vision tower.
    """
    for file in weight_files(checkpoint, TOWER_PREFIXES):
        if not (checkpoint / file).exists():
            raise FileNotFoundError(f"no vision weights ({file}) in {checkpoint}")
        with safe_open(checkpoint / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- safe_open offers keys(), not iteration
                if name.startswith(TOWER_PREFIXES):
                    yield name.split("visual.", 1)[1], tensors.get_tensor(name)
