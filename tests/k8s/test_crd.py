"""The RayServices satisfy the CRD, closed against unknown keys, and the check would notice if they did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.k8s.crd_schema import mistakes, strict_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.k8s.manifests import Object


def _group(service: Object) -> Any:
    return service["spec"]["rayClusterConfig"]["workerGroupSpecs"][3]


def _container(service: Object) -> Any:
    return _group(service)["template"]["spec"]["containers"][0]


def test_the_rayservice_satisfies_the_crd(rayservice: Object, rayservice_schema: Object) -> None:
    """The RayService has no unknown key and no wrong value by KubeRay's CRD."""
    assert mistakes(rayservice_schema, rayservice) == []


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (lambda s: s["spec"].update(serveConfig="x"), "'serveConfig' was unexpected"),
        (lambda s: s["metadata"].update(lables={}), "'lables' was unexpected"),
        (lambda s: _group(s).update(lables={"pool": "decoder"}), "'lables' was unexpected"),
        (
            lambda s: _container(s)["securityContext"].update(readOnlyRootFileSystem=True),
            "'readOnlyRootFileSystem' was unexpected",
        ),
        (lambda s: _container(s)["securityContext"]["capabilities"].update(dorp=["ALL"]), "'dorp' was unexpected"),
        (lambda s: _group(s)["template"]["spec"]["volumes"][0]["emptyDir"].update(size="1Gi"), "'size' was unexpected"),
        (lambda s: _group(s).update(replicas="1"), "'1' is not of type 'integer'"),
        (lambda s: _group(s)["rayStartParams"].update(port=6379), "6379 is not of type 'string'"),
        (lambda s: _container(s)["resources"]["limits"].update(memory="5 Gi"), "'5 Gi' does not match"),
        (lambda s: _group(s).pop("template"), "'template' is a required property"),
        (lambda s: s["spec"]["rayClusterConfig"]["authOptions"].update(mode="Token"), "'Token' is not one of"),
        (lambda s: _container(s)["env"].append(dict(_container(s)["env"][0])), "two items have the same name"),
        (
            lambda s: _container(s)["ports"].append({"name": "b", "containerPort": 8000, "protocol": "TCP"}),
            "containerPort, protocol",
        ),
        (lambda s: s.update(apiVersion="ray.io/v1alpha1"), "'ray.io/v1' was expected"),
    ],
)
def test_a_mistake_is_found(
    rayservice: Object, rayservice_schema: Object, change: Callable[[Object], object], mistake: str
) -> None:
    """One wrong key or value at any depth is reported, and nothing else."""
    change(rayservice)
    [found] = mistakes(rayservice_schema, rayservice)
    assert mistake in found


def test_what_an_api_server_completes_may_be_left_out(rayservice: Object, rayservice_schema: Object) -> None:
    """Required keys with a default may be missing, and a quantity may be a number or a string."""
    del _group(rayservice)["minReplicas"]
    _container(rayservice)["resources"]["requests"]["cpu"] = 1
    assert mistakes(rayservice_schema, rayservice) == []


def test_a_keyword_that_the_conversion_would_lose_is_refused() -> None:
    """A CRD with a keyword that the conversion does not know is refused."""
    schema = {"type": "object", "properties": {"spec": {"type": "object", "minProperties": 1}}}
    crd = {"spec": {"group": "ray.io", "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    with pytest.raises(ValueError, match="minProperties"):
        strict_schema(crd, "v1")
