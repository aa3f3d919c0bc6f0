"""The configuration tree, and the application files that come with Prism."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined]  # compiled

from cluster.config import DecoderConfig, PrismConfig
from deployments.app import build, pool_options, resources_of
from deployments.local.app_file import ApplicationFile
from loadtest.servers import ROOT


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"chekpoint": "demo"}}, "model.chekpoint"),
        ({"decoder": {"resources": {"gpus": 1}}}, "decoder.resources.gpus"),
        ({"router": {"request_timeout_s": 0}}, "router.request_timeout_s"),
        ({"encoder": {"device": "tpu"}}, "encoder.device"),
        ({"encode": "auto"}, "encode"),
        ({"model": {"dtype": "float16"}}, "model.dtype"),
    ],
)
def test_a_wrong_key_or_value_is_named(args: dict[str, object], named: str) -> None:
    """An unknown key or a bad value is refused, and the error says where it stands."""
    with pytest.raises(ValidationError) as caught:
        PrismConfig.model_validate(args)
    assert ".".join(str(step) for step in caught.value.errors()[0]["loc"]) == named


@pytest.mark.parametrize(
    ("pool", "key", "place"),
    [
        ("decoder", "num_replicas", "{name: Decoder, num_replicas: …}"),
        ("preprocessor", "max_ongoing_requests", "{name: Preprocessor, max_ongoing_requests: …}"),
        ("router", "max_in_flight", "{name: Router, user_config: {max_in_flight: …}}"),
        ("encoder", "cache_bytes", "{name: VisionEncoder, user_config: {cache_bytes: …}}"),
    ],
)
def test_a_key_at_its_old_place_is_refused_with_its_new_one(pool: str, key: str, place: str) -> None:
    """A size or a tunable value among the ``args`` is refused, with the deployment that it belongs to."""
    with pytest.raises(ValidationError) as caught:
        PrismConfig.model_validate({pool: {key: 2}})
    assert f"{key}: it belongs below deployments: {place}" in str(caught.value)


def test_tensor_parallel_on_cpu_says_what_it_needs() -> None:
    """Two tensor-parallel workers on CPU without bound cores are refused, and the error states a value that would be
    right."""
    with pytest.raises(ValidationError, match=r"0\|1"):
        PrismConfig.model_validate({"decoder": {"tensor_parallel_size": 2}})
    with pytest.raises(ValidationError, match=r"0\|1"):
        PrismConfig.model_validate({"decoder": {"tensor_parallel_size": 2, "bind_cores": "0-3"}})


def test_cores_are_written_as_vllm_does() -> None:
    """Cores are written as ranges or single numbers, with one entry per worker. Other text is refused."""
    assert DecoderConfig(bind_cores="0-2,6").cores == {0, 1, 2, 6}
    assert DecoderConfig(bind_cores="0-1|4", tensor_parallel_size=2).cores == {0, 1, 4}
    for wrong in ("all", "0|", "1-", "0 1", ""):
        with pytest.raises(ValidationError, match="bind_cores"):
            DecoderConfig(bind_cores=wrong)


def test_who_shares_cores() -> None:
    """CPU engines without ``bind_cores`` share their cores. Engines with it, and engines on a GPU, do not."""
    assert DecoderConfig().shares_cores
    assert not DecoderConfig(bind_cores="0").shares_cores
    assert not DecoderConfig(device="cuda").shares_cores


def test_the_tree_is_frozen() -> None:
    """No value of the configuration can be changed after it was read."""
    with pytest.raises(ValidationError, match="frozen"):
        PrismConfig().model.__setattr__("served_name", "other")


@pytest.mark.parametrize("name", ["app.yaml", "qwen2_5_vl_32b.yaml"])
def test_application_files_build(name: str) -> None:
    """Each application file that Prism ships is valid for Serve and for Prism, and can be built."""
    file = ApplicationFile.read(ROOT / "deployments" / name)
    assert build(file.config) is not None
    assert file.serve.applications[0].import_path == "deployments.app:build"


def test_the_32b_decoders_take_four_gpus_of_one_node() -> None:
    """A TP=4 decoder is one actor with four GPUs, so they are on one node, and that is a node of the decoder pool."""
    config = ApplicationFile.read(ROOT / "deployments" / "qwen2_5_vl_32b.yaml").config
    options = pool_options(config.decoder, config.pool_labels)
    assert options["ray_actor_options"] == {"num_cpus": 5, "num_gpus": 4, "label_selector": {"pool": "decoder"}}
    assert not any("placement_group" in name for name in options)


def test_what_one_machine_is_asked_for() -> None:
    """On a single machine the 32B file asks for no labelled nodes, and its replicas need ten GPUs in all."""
    file = ApplicationFile.read(ROOT / "deployments" / "qwen2_5_vl_32b.yaml")
    [application] = file.for_one_machine().applications
    config = PrismConfig.model_validate(application.args)
    assert config.pool_labels == []
    assert not any("label_selector" in pool_options(pool, [])["ray_actor_options"] for pool in config.pools)
    # 2 Routers of 2 CPUs, 16 preprocessors of 1, 2 encoders of 4, and 2 decoders of 5
    assert resources_of(config, file.num_replicas()) == {"CPU": 4 + 16 + 8 + 10, "GPU": 2 + 2 * 4}


def test_the_gpus_of_a_decoder_follow_from_its_workers() -> None:
    """A decoder cannot set ``num_gpus``, which follows from tensor_parallel_size. It can reserve memory."""
    decoder: dict[str, Any] = {"device": "cuda", "tensor_parallel_size": 4}
    with pytest.raises(ValidationError, match=r"leave out resources\.num_gpus"):
        PrismConfig.model_validate({"decoder": {**decoder, "resources": {"num_gpus": 4}}})
    config = PrismConfig.model_validate({"decoder": {**decoder, "resources": {"memory_bytes": 2**30}}})
    assert pool_options(config.decoder, [])["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 4, "memory": 2**30}


def test_a_pool_label_is_a_preference_unless_required() -> None:
    """Replicas prefer nodes with their pool's label and otherwise use unlabelled nodes. If the label is required,
    they use no other nodes."""
    resources = {pool: {"resources": {"pool_label": pool}} for pool in ("encoder", "decoder")}
    config = PrismConfig.model_validate(resources)
    actor = pool_options(config.encoder, config.pool_labels)["ray_actor_options"]
    assert actor["label_selector"] == {"pool": "encoder"}
    [fallback] = actor["fallback_strategy"]
    assert node_labels_match_selector({}, fallback["label_selector"])
    assert not node_labels_match_selector({"pool": "encoder"}, fallback["label_selector"])
    assert not node_labels_match_selector({"pool": "decoder"}, fallback["label_selector"])
    required = PrismConfig.model_validate(
        {"encoder": {"resources": {"pool_label": "encoder", "pool_label_required": True}}}
    ).encoder
    assert "fallback_strategy" not in pool_options(required, ["encoder"])["ray_actor_options"]
