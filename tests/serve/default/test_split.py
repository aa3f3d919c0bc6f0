"""The split is one: no process holds both halves of the model."""

from __future__ import annotations

from typing import Any

import pytest
from ray import serve
from safetensors import safe_open

from cluster.checkpoint import Checkpoint
from cluster.config import ModelConfig


def pool(name: str) -> Any:
    """Returns a handle to a pool of the running application."""
    return serve.get_deployment_handle(name, "prism")


@pytest.mark.usefixtures("cluster")
async def test_the_decoder_holds_no_vision_tower() -> None:
    """Every worker of the engine holds weights of the language model and none of a vision tower."""
    workers = await pool("Decoder").parameter_names.remote()
    assert workers
    for names in workers:
        assert any("layers.0" in name for name in names)
        assert [name for name in names if "visual" in name] == []


@pytest.mark.usefixtures("cluster")
async def test_the_encoder_holds_the_vision_tower_alone() -> None:
    """The encoder's weights are exactly the checkpoint's vision weights."""
    names = await pool("VisionEncoder").parameter_names.remote()
    with safe_open(Checkpoint(ModelConfig()).path / "model.safetensors", framework="pt") as weights:
        stored = {name.removeprefix("visual.") for name in weights.keys() if name.startswith("visual.")}  # noqa: SIM118
    assert set(names) == stored
