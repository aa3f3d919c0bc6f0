"""Builds the overlays with kubectl, and reads YAML without forgiving a duplicate key."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"

Object = dict[str, Any]


class DuplicateKeyError(ValueError):
    """A mapping contains a key twice. Other YAML readers keep the last value and report nothing."""


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise DuplicateKeyError(f"{key!r} stands twice in one mapping{node.start_mark}")
        return super().construct_mapping(node, deep)


def read_documents(text: str) -> list[Any]:
    """The documents of a YAML text.

    Raises:
        DuplicateKeyError: A mapping names a key twice.
    """
    return list(yaml.load_all(text, _StrictLoader))


def read_document(text: str) -> Any:
    """The only document of a YAML text; raises like ``read_documents``."""
    [document] = read_documents(text)
    return document


@cache
def build(kustomization: Path) -> str:
    """Runs ``kubectl kustomize`` on a folder and returns the YAML that it prints.

    Raises:
        CalledProcessError: kubectl refused; ``stderr`` says why.
    """
    return subprocess.run([KUBECTL, "kustomize", kustomization], check=True, capture_output=True, text=True).stdout


def pod_templates(rayservice: Object) -> dict[str, Object]:
    """The pod template of the head and of each worker group, by name."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}
