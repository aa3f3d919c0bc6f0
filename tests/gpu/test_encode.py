"""Encode stage on a GPU."""

from __future__ import annotations

import pytest
import torch

from cluster.checkpoint import Checkpoint
from cluster.config import ModelConfig
from cluster.encode.benchmark import measure
from cluster.encode.picture_encoder import PictureEncoder
from cluster.messages import Embedding, Picture
from cluster.preprocess import preprocess
from tests.helpers.pictures import png

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SIZES = [(224, 168), (28, 28), (333, 777), (224, 168)]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_embeddings_on_a_gpu_equal_those_on_the_cpu(dtype: str, bound: float) -> None:
    """Alone and in a batch, a GPU's embeddings equal the CPU's float32 ones within the precision of the dtype."""
    checkpoint = Checkpoint(ModelConfig(dtype="float32"))
    pictures = [preprocess(Picture("0", png(*size), *size, ""), checkpoint.processor) for size in SIZES]
    exact = PictureEncoder.load(checkpoint.path, checkpoint.processor, dtype="float32").encode(pictures)
    encoder = PictureEncoder.load(checkpoint.path, checkpoint.processor, dtype=dtype, device="cuda")  # type: ignore[arg-type]
    alone = [embedding for picture in pictures for embedding in encoder.encode([picture])]
    for found in (alone, encoder.encode(pictures)):
        for embedding, right in zip(found, exact, strict=True):
            assert (numbers(embedding) - numbers(right)).abs().max() < bound * numbers(right).abs().max()


def test_the_measurement_runs() -> None:
    """The measurement runs on a GPU at a small geometry and finds its numbers right."""
    assert measure("cuda", "demo", batch=2, repeats=2)["right"]


def numbers(embedding: Embedding) -> torch.Tensor:
    """Returns an embedding as float32 numbers."""
    return torch.from_numpy(embedding.rows).view(getattr(torch, embedding.dtype)).float()
