"""Application files as ``prism serve`` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deployments.local.app_file import ApplicationFile, ApplicationFileError
from deployments.local.entries import POLICY
from loadtest.servers import APP

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, top: dict[str, Any], application: dict[str, Any]) -> Path:
    """Writes the embedded default with some keys changed and returns its path. Other deployments have no policy."""
    content = yaml.safe_load(APP.read_text()) | top
    content["applications"][0] |= ({"autoscaling_policy": None} if "deployments" in application else {}) | application
    path = folder / "app.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("top", "application", "named"),
    [
        ({"aplications": []}, {}, "aplications"),
        ({}, {"nmae": "prism"}, "applications.nmae"),
        ({}, {"args": {"modle": {}}}, "applications.args.modle"),
        ({"grpc_options": {"port": 9000}}, {}, "grpc_options"),
        ({"http_options": {"port": 8000, "root_path": "/a"}}, {}, "http_options.root_path"),
        ({}, {"deployments": [{"name": "Decodr"}]}, "applications.deployments.name: there is no Decodr; did you mean"),
        ({}, {"deployments": [{"name": "Decoder", "user_config": {"cache_bytes": 1}}]}, "user_config.cache_bytes"),
        ({}, {"deployments": [{"name": "Decoder", "ray_actor_options": {}}]}, "ray_actor_options: Prism sets"),
        (
            {},
            {"deployments": [{"name": "Decoder", "autoscaling_config": {"initial_replicas": 1}}]},
            "raise min_replicas",
        ),
        ({}, {"import_path": "other:build"}, "deployments.app:build"),
    ],
)
def test_what_would_not_be_applied_is_refused(
    top: dict[str, Any], application: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """A key that is unknown, or that only ``serve run`` applies, is refused by name and never ignored."""
    with pytest.raises(ValueError, match=named):
        ApplicationFile.read(written(tmp_path, top, application))


def test_the_embedded_default_is_read(tmp_path: Path) -> None:
    """The embedded default is accepted without changes."""
    assert ApplicationFile.read(written(tmp_path, {}, {})).config.model.checkpoint == "demo"


@pytest.mark.parametrize("content", ["", "[]", "applications: []"])
def test_a_file_without_an_application_is_refused(content: str, tmp_path: Path) -> None:
    """A file that is not a mapping with exactly one application is refused."""
    path = tmp_path / "app.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"applications|one application"):
        ApplicationFile.read(path)


@pytest.mark.parametrize(
    "deployments",
    [
        [3],
        [None],
        [[]],
        "Router",
        {"Router"},
        [("name", "Router")],
        [{"name": "Router"}, {"name": "Router"}],
        [{"num_replicas": 1}],
        [{"name": 3}],
        [{"name": "Router", "num_replicas": None}],
        [{"name": "Router", "num_replicas": 10**400}],
        [{"name": "Router", "num_replicas": "many"}],
        [{"name": "Router", "user_config": None}],
        [{"name": "Router", "user_config": []}],
        [{"name": "Router", "user_config": {"max_held_bytes": 5}}],
        [{"name": "Decoder", "user_config": {}}],
        [{"name": "Decoder", "user_config": None}],
        [{"name": "Router", "autoscaling_config": 3}],
        [{"name": "Router", "autoscaling_config": None}],
        [{"name": "Router", "autoscaling_config": {"policy": {"policy_function": "nope:x"}}}],
        [{"name": "Router", "max_replicas_per_node": 0}],
        [{"name": "Router", "max_surge_percent": 101}],
    ],
    ids=range(22),
)
def test_any_value_below_deployments_gets_a_sentence(deployments: object) -> None:
    """Whatever stands below ``deployments:``, the file is refused with sentences and never with another exception."""
    content = yaml.safe_load(APP.read_text())
    content["applications"][0] |= {"autoscaling_policy": None, "deployments": deployments}
    with pytest.raises(ApplicationFileError) as caught:
        ApplicationFile.parse(APP, content)
    assert all(problem.startswith("applications.") for problem in caught.value.problems)


def test_a_route_that_serve_would_refuse_is_named(tmp_path: Path) -> None:
    """A route prefix without a slash, and numbers that are infinite, are refused."""
    with pytest.raises(ApplicationFileError, match="route_prefix"):
        ApplicationFile.read(written(tmp_path, {}, {"route_prefix": "x"}))
    for args in (
        {"router": {"request_timeout_s": float("inf")}},
        {"encoder": {"resources": {"num_cpus": float("inf")}}},
    ):
        with pytest.raises(ApplicationFileError, match="finite number"):
            ApplicationFile.read(written(tmp_path, {}, {"args": args}))


def test_what_one_machine_gets(tmp_path: Path) -> None:
    """On one machine no pool asks for labelled nodes, and every deployment drains as ``DRAINING`` says unless the file
    says something else. All else is as in the file."""
    decoder = {"name": "Decoder", "num_replicas": 3, "graceful_shutdown_timeout_s": 7.0}
    file = ApplicationFile.read(written(tmp_path, {}, {"deployments": [decoder]}))
    [application] = file.for_one_machine().model_dump(exclude_unset=True)["applications"]
    assert "label" not in str(application["args"])
    drained = {each["name"]: each["graceful_shutdown_timeout_s"] for each in application["deployments"]}
    assert drained == {"Router": 20, "Preprocessor": 20, "VisionEncoder": 20, "Decoder": 7}
    assert {each["graceful_shutdown_wait_loop_s"] for each in application["deployments"]} == {0.25}
    assert application["deployments"][-1]["num_replicas"] == 3
    assert application["args"]["model"] == file.serve.applications[0].args["model"]


@pytest.mark.parametrize(
    ("sizes", "num_replicas"),
    [
        ({}, 1),
        ({"num_replicas": 3}, 3),
        ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 4}}, 2),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 4}}, 1),
    ],
)
def test_how_many_replicas_start(sizes: dict[str, Any], num_replicas: int, tmp_path: Path) -> None:
    """A deployment starts with its number of replicas, or with its lower bound if Serve scales it."""
    file = ApplicationFile.read(written(tmp_path, {}, {"deployments": [{"name": "Decoder", **sizes}]}))
    assert file.num_replicas() == {"Router": 1, "Preprocessor": 1, "VisionEncoder": 1, "Decoder": num_replicas}


POLICY_KEYS = {"policy_function": POLICY}


@pytest.mark.parametrize(
    ("policy", "change", "said"),
    [
        ({"policy_function": "other:Policy"}, {}, "autoscaling_policy.policy_function: it must be"),
        (POLICY_KEYS | {"policy_kwargs": {"mode": "act"}}, {}, "policy_kwargs: it may hold start_s only"),
        (POLICY_KEYS | {"policy_kwargs": {"start_s": {"Decodr": 1}}}, {}, "start_s: it must give seconds"),
        (POLICY_KEYS | {"policy_kwargs": {"start_s": {"Decoder": -1}}}, {}, "start_s: it must give seconds"),
        (POLICY_KEYS | {"policy_kwargs": {"start_s": 3}}, {}, "start_s: it must give seconds"),
        (POLICY_KEYS | {"policy_kwargs": {"start_s": {"Decoder": True}}}, {}, "start_s: it must give seconds"),
        (POLICY_KEYS | {"policy_kwargs": [1]}, {}, "policy_kwargs: it may hold start_s only"),
        (POLICY_KEYS | {"policy_kwargs": "x"}, {}, "policy_kwargs: it may hold start_s only"),
        (POLICY_KEYS, {"Decoder": {"upscale_delay_s": False}}, "upscale_delay_s: it must be 0 for Decoder"),
        (POLICY_KEYS, {"Decoder": {"upscaling_factor": True}}, "upscaling_factor: it must be"),
        (POLICY_KEYS, {"Decoder": {"min_replicas": 0}}, "min_replicas: it must be at least 1 for Decoder"),
        (POLICY_KEYS, {"Decoder": {"max_replicas": 10**9}}, "max_replicas: it must be at most"),
        (POLICY_KEYS, {"Router": None}, "it needs an autoscaling_config of Router"),
        (POLICY_KEYS, {"Decoder": {"upscale_delay_s": 30}}, "upscale_delay_s: it must be 0 for Decoder"),
        (POLICY_KEYS, {"Decoder": {"target_ongoing_requests": 2}}, "target_ongoing_requests: leave it out for Decoder"),
        (POLICY_KEYS, {"Decoder": {"upscaling_factor": 3}}, "upscaling_factor: it must be 1, 2, 4, 8 or 16"),
    ],
)
def test_what_would_keep_the_policy_from_working_is_named(
    policy: dict[str, Any], change: dict[str, dict[str, Any] | None], said: str
) -> None:
    """With Prism's policy, a key that would delay, blunt or disable it is refused with a sentence."""
    content = yaml.safe_load(APP.read_text())
    [application] = content["applications"]
    application["autoscaling_policy"] = policy
    for entry in application["deployments"]:
        bounds = change.get(entry["name"], {})
        entry["autoscaling_config"] = entry["autoscaling_config"] | bounds if bounds is not None else {}
    with pytest.raises(ApplicationFileError, match=said):
        ApplicationFile.parse(APP, content)


def test_acting_without_a_policy_is_refused() -> None:
    """A file whose Router is to carry out decisions that nobody makes is refused."""
    content = yaml.safe_load(APP.read_text())
    [application] = content["applications"]
    del application["autoscaling_policy"]
    application["deployments"][0]["user_config"]["scaling"] = "act"
    with pytest.raises(ApplicationFileError, match="act needs the application's autoscaling_policy"):
        ApplicationFile.parse(APP, content)


@pytest.mark.parametrize("name", [["a"], {"a": 1}, 3])
def test_a_name_that_is_no_text_is_named_beside_the_policy(name: object) -> None:
    """An entry whose name is no text gets a sentence in a file with the policy too."""
    content = yaml.safe_load(APP.read_text())
    content["applications"][0]["deployments"][1]["name"] = name
    with pytest.raises(ApplicationFileError, match=r"deployments\.name"):
        ApplicationFile.parse(APP, content)


def test_known_start_times_are_accepted() -> None:
    """The policy takes the seconds that replicas need to start."""
    content = yaml.safe_load(APP.read_text())
    content["applications"][0]["autoscaling_policy"] |= {"policy_kwargs": {"start_s": {"Decoder": 85.5}}}
    assert ApplicationFile.parse(APP, content)
