"""Every key of the application files is one that Ray or Prism knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deployments.local.app_file import ApplicationFileError, check_serve_config
from deployments.local.entries import MEASURED, POLICY
from tests.helpers.k8s.manifests import ROOT, read_document

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.k8s.manifests import Object

FILES = [path for path in sorted((ROOT / "deployments").glob("*.yaml")) if path.name != "kustomization.yaml"]

EVERY_LEVEL: dict[str, Any] = {
    "http_options": {"port": 8000},
    "grpc_options": {"port": 9000},
    "logging_config": {"encoding": "JSON"},
    "applications": [
        {
            "name": "prism",
            "import_path": "deployments.app:build",
            "logging_config": {"log_level": "INFO"},
            "autoscaling_policy": {"policy_function": POLICY},
            "args": {"model": {"checkpoint": "demo"}, "decoder": {"resources": {"num_cpus": 1}}},
            "deployments": [
                {
                    "name": "Router",
                    "user_config": {"max_in_flight": 8},
                    "autoscaling_config": {"min_replicas": 1, **MEASURED},
                    "logging_config": {"log_level": "INFO"},
                }
            ],
        }
    ],
}
"""A configuration that has a mapping at every level where one may be written."""


def _mappings(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    if isinstance(node, list):
        return _mappings(node[0], path)
    if not isinstance(node, dict):
        return []
    return [(path, node), *(found for key, child in node.items() for found in _mappings(child, f"{path}{key}."))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_application_file_holds_only_known_keys(path: Path) -> None:
    """Ray's schemas and Prism's configuration accept every key of each application file."""
    config = check_serve_config(read_document(path.read_text()))
    assert [application.import_path for application in config.applications] == ["deployments.app:build"]


def test_the_configuration_inside_the_rayservice_is_checked_too(rayservice: Object) -> None:
    """In a pod Serve listens on all interfaces, on the port that the pods declare as `serve`."""
    config = check_serve_config(read_document(rayservice["spec"]["serveConfigV2"]))
    head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert config.http_options.host == "0.0.0.0"
    assert {"name": "serve", "containerPort": config.http_options.port} in head["ports"]


def test_every_level_is_accepted_without_a_typo() -> None:
    """The configuration that the tests below put typos into is valid."""
    assert check_serve_config(EVERY_LEVEL).applications[0].name == "prism"


@pytest.mark.parametrize("level", [path for path, _ in _mappings(EVERY_LEVEL)], ids=lambda path: path or "top")
def test_a_typo_is_refused_at_every_level(level: str) -> None:
    """An unknown key at any level is refused with its path."""
    config = read_document(str(EVERY_LEVEL))
    dict(_mappings(config))[level]["nmu_replicas"] = 1
    with pytest.raises(ApplicationFileError, match=rf"^{level}nmu_replicas: there is no such key"):
        check_serve_config(config)


@pytest.mark.parametrize(
    ("level", "key", "value"),
    [
        ("applications.args.decoder.", "device", "gpu"),
        ("applications.deployments.autoscaling_config.", "min_replicas", -1),
        ("http_options.", "port", "eight thousand"),
    ],
)
def test_a_wrong_value_is_refused(level: str, key: str, value: object) -> None:
    """A wrong value is refused, also where Ray's schema accepts any mapping."""
    config = read_document(str(EVERY_LEVEL))
    dict(_mappings(config))[level][key] = value
    with pytest.raises(ApplicationFileError, match=f"^{level}{key}: it must be"):
        check_serve_config(config)
