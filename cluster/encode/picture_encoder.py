"""The vision tower with its processor's normalisation: it turns patches into embeddings, and loads nothing else of the
model.

In: ``Pixels`` (uint8 patches). Out: ``Embedding`` (one row per token that the language model will read). Needs torch
    and transformers alone, so that it also runs on a GPU machine without Ray or vLLM.
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
"""Where a checkpoint keeps the vision tower: as published by Qwen, and as transformers 5 saves it."""


class PictureEncoder:
    """The Qwen2.5-VL vision tower with the normalisation of its processor.

    Source: Qwen2.5-VL technical report (arXiv 2502.13923), section 2.1.1; the weights' module is transformers' own.
    """

    def __init__(self, module: Qwen2_5_VisionTransformerPretrainedModel, settings: ProcessorSettings) -> None:
        self.parameter_names: Final = [name for name, _ in module.named_parameters()]
        self.bytes_per_patch: Final = module.config.out_hidden_size * module.dtype.itemsize / settings.merge_size**2
        """What each patch of a picture adds to its embedding."""
        self._run = Tower(module)
        self._dtype = module.dtype
        self._settings = settings
        # Per channel, as the processor does it: one fused step on the 0..255 scale.
        self._mean = (torch.tensor(settings.image_mean) * 255)[:, None].to(module.device)
        self._std = (torch.tensor(settings.image_std) * 255)[:, None].to(module.device)

    @classmethod
    def load(cls, checkpoint: Path, settings: ProcessorSettings, *, dtype: Dtype, device: str = "cpu") -> Self:
        """Reads the tower's weights alone from a checkpoint's safetensors files.

        Raises:
            FileNotFoundError: The checkpoint has no weights.
            RuntimeError: The weights do not fit the configuration.
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
        """Encodes pictures together in one pass.

        Returns:
            One embedding per picture: [num_patches / merge², out_hidden_size] in the tower's dtype.
        """
        rows = self._run([self.normalise(pixels) for pixels in batch], [pixels.grid for pixels in batch])
        return [self._embedding(pixels, part) for pixels, part in zip(batch, rows, strict=True)]

    def check(self) -> None:
        """Encodes the smallest picture there is; raises what the tower raises."""
        settings = self._settings
        _, height, width = grid = (1, settings.merge_size, settings.merge_size)
        self.encode([Pixels("0" * 64, np.zeros((height * width, settings.patch_bytes), np.uint8), grid)])

    def normalise(self, pixels: Pixels) -> Tensor:
        """A picture's patches, in the tower's dtype.

        Returns:
            [num_patches, 3 · patch · patch]
        """
        still = torch.tensor(pixels.patches, device=self._mean.device).view(pixels.num_patches, 3, -1).float()
        return still.sub_(self._mean).div_(self._std).flatten(1).to(self._dtype)

    def _embedding(self, pixels: Pixels, rows: Tensor) -> Embedding:
        own = rows.cpu()
        if own.untyped_storage().nbytes() > own.nbytes:  # or, kept, it would keep the rows of the whole run
            own = own.clone()
        return Embedding(
            pixels.digest, own.view(torch.uint8).numpy(), str(rows.dtype).removeprefix("torch."), pixels.grid
        )


def read_tower_weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the vision tower's tensors by their name inside the tower; no other tensor is read from disk.

    Raises:
        FileNotFoundError: The directory holds no safetensors files.
    """
    for file in weight_files(checkpoint, TOWER_PREFIXES):
        if not (checkpoint / file).exists():
            raise FileNotFoundError(f"no vision weights ({file}) in {checkpoint}")
        with safe_open(checkpoint / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- safe_open offers keys(), not iteration
                if name.startswith(TOWER_PREFIXES):
                    yield name.split("visual.", 1)[1], tensors.get_tensor(name)
