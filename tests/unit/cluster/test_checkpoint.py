"""Each pool brings from the Hub what it needs, and no more."""

from __future__ import annotations

import fnmatch
import json
import shutil
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from pydantic import ValidationError

from cluster.checkpoint import DEMO_CHECKPOINT, Checkpoint, ProcessorSettings
from cluster.config import ModelConfig
from cluster.encode.picture_encoder import TOWER_PREFIXES
from cluster.preprocess import smart_resize

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "7cfb30d71a1f4f49a57592323337a4a4727301da"
WEIGHTS = {
    "visual.blocks.0.norm1.weight": "model-00001-of-00003.safetensors",
    "model.embed_tokens.weight": "model-00001-of-00003.safetensors",
    "model.layers.0.mlp.up_proj.weight": "model-00002-of-00003.safetensors",
    "visual.merger.mlp.2.weight": "model-00003-of-00003.safetensors",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the downloaded files of a sharded checkpoint. A local folder takes the place of the Hub and
    obeys download patterns as the Hub does."""
    origin, cache = tmp_path / "origin", tmp_path / "cache" / "snapshots" / COMMIT
    origin.mkdir()
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        shutil.copy(DEMO_CHECKPOINT / name, origin)
    (origin / "model.safetensors.index.json").write_text(json.dumps({"weight_map": WEIGHTS}))
    for name in WEIGHTS.values():
        (origin / name).write_bytes(b"weights")

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        assert repo_id == "Qwen/Qwen2.5-VL-3B-Instruct"
        assert revision in ("v1", COMMIT)
        cache.mkdir(parents=True, exist_ok=True)
        for file in origin.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return cache


def on_the_hub() -> Checkpoint:
    """Returns a checkpoint on the Hub as a process that has just started would see it."""
    return Checkpoint(ModelConfig(checkpoint="Qwen/Qwen2.5-VL-3B-Instruct", hub_revision="v1"))


def weights_in(folder: Path) -> list[int]:
    """Returns the numbers of the weight files that a folder contains."""
    return sorted(int(file.name[6:11]) for file in folder.glob("*.safetensors"))


def test_routers_and_preprocessors_need_no_weights(cache: Path) -> None:
    """Routers and preprocessors download only small files: the processor's settings, and the commit as the revision."""
    revision = on_the_hub().revision
    assert on_the_hub().processor.patch_size == 14
    assert weights_in(cache) == []
    assert revision == on_the_hub().revision != Checkpoint(ModelConfig()).revision


def test_encoders_bring_the_tower_s_files(cache: Path) -> None:
    """Encoders download only the files with weights of the vision tower."""
    assert on_the_hub().path_with(TOWER_PREFIXES) == cache
    assert weights_in(cache) == [1, 3]


def test_decoders_bring_everything(cache: Path) -> None:
    """Decoders download the whole checkpoint."""
    assert on_the_hub().path == cache
    assert weights_in(cache) == [1, 2, 3]


def test_processor_settings_come_from_the_checkpoint() -> None:
    """The processor's settings are read from the checkpoint, in the older and in the newer spelling."""
    settings = ProcessorSettings.from_checkpoint(DEMO_CHECKPOINT)
    assert (settings.min_pixels, settings.max_pixels) == (112 * 112, 224 * 168)


def test_other_weights_have_another_revision(tmp_path: Path) -> None:
    """Different weights of the same shapes have different revisions."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    model = ModelConfig(checkpoint=str(folder))
    before = Checkpoint(model).revision
    assert before == Checkpoint(ModelConfig()).revision
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x01\x02")
    assert Checkpoint(model).revision != before


def test_the_revision_names_the_encoder() -> None:
    """The same checkpoint has the same revision each time, and another dtype has another revision."""
    assert Checkpoint(ModelConfig(dtype="float32")).revision == Checkpoint(ModelConfig(dtype="float32")).revision
    assert Checkpoint(ModelConfig(dtype="float32")).revision != Checkpoint(ModelConfig(dtype="bfloat16")).revision


@pytest.mark.parametrize(
    ("model", "bounds"),
    [
        (ModelConfig(), (112 * 112, 224 * 168)),
        (ModelConfig(max_pixels=20_000), (112 * 112, 20_000)),
        (ModelConfig(max_pixels=2000), (2000, 2000)),
        (ModelConfig(max_pixels=10**9), (112 * 112, 224 * 168)),
        (ModelConfig(min_pixels=784), (784, 224 * 168)),
        (ModelConfig(min_pixels=10**9), (224 * 168, 224 * 168)),
    ],
)
def test_the_configuration_bounds_the_pixels(model: ModelConfig, bounds: tuple[int, int]) -> None:
    """A bound of the configuration takes the place of the checkpoint's. The largest picture never grows, and the bounds
    stay in order."""
    processor = Checkpoint(model).processor
    assert (processor.min_pixels, processor.max_pixels) == bounds
    height, width = smart_resize(3000, 4000, processor)
    assert height * width <= bounds[1]
    assert processor.max_tokens == bounds[1] // 784


def test_other_bounds_have_another_revision() -> None:
    """Pictures that are prepared within other bounds have other digests."""
    models = [
        ModelConfig(),
        ModelConfig(max_pixels=20_000),
        ModelConfig(min_pixels=20_000),
        ModelConfig(max_pixels=9000),
    ]
    assert len({Checkpoint(model).revision for model in models}) == len(models)


def test_bounds_in_disorder_are_refused() -> None:
    """A smallest picture that is larger than the largest is refused, and so is a largest one of less than a token."""
    with pytest.raises(ValidationError, match="min_pixels must not be more than max_pixels"):
        ModelConfig(min_pixels=20_000, max_pixels=10_000)
    with pytest.raises(ValidationError, match="max_pixels"):
        ModelConfig(max_pixels=783)
