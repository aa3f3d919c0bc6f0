"""The flags of the engine."""

from __future__ import annotations

import json

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from cluster.config import ModelConfig, PrismConfig
from cluster.decode.flags import engine_flags


@pytest.mark.parametrize(
    ("model", "bounds"),
    [
        (ModelConfig(), None),
        (ModelConfig(max_pixels=20_000), {"min_pixels": 112 * 112, "max_pixels": 20_000}),
        (ModelConfig(min_pixels=784), {"min_pixels": 784, "max_pixels": 224 * 168}),
    ],
)
def test_vllm_hears_of_the_bounds_of_pixels(model: ModelConfig, bounds: dict[str, int] | None) -> None:
    """vLLM gets the bounds of pixels that pictures are prepared within, if the configuration sets any."""
    flags = engine_flags(PrismConfig(model=model))
    found = [json.loads(flag.partition("=")[2]) for flag in flags if flag.startswith("--mm-processor-kwargs=")]
    assert found == ([] if bounds is None else [bounds])
    args = AsyncEngineArgs.from_cli_args(make_arg_parser(FlexibleArgumentParser()).parse_args(flags))
    assert args.mm_processor_kwargs == bounds
