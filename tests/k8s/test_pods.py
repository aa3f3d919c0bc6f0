"""Properties of the pods that the schema does not check: isolation, shared memory, draining, authentication."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.autoscaler._private.kuberay.utils import parse_quantity

from cluster.config import PrismConfig
from deployments.ray_serve.haproxy import BINARY, LEAN
from tests.helpers.k8s.fitting import deployments_of, groups_of, pools_of
from tests.helpers.k8s.manifests import K8S, build, pod_templates, read_document
from tests.k8s.conftest import APPLICATIONS

if TYPE_CHECKING:
    from tests.helpers.k8s.manifests import Object

GROUPS = ("head", "router", "preprocessor", "encoder", "decoder")


@pytest.fixture(params=GROUPS)
def pod(request: pytest.FixtureRequest, rayservice: Object) -> dict[str, Any]:
    """The pod specifications of the head and of each worker group, one test run for each."""
    specification: dict[str, Any] = pod_templates(rayservice)[request.param]["spec"]
    return specification


@pytest.fixture
def config(application: Object) -> PrismConfig:
    """Prism's configuration in the overlay."""
    return PrismConfig.model_validate(application["applications"][0]["args"])


def test_every_pod_is_tested_here() -> None:
    """Each worker group is in the list that the tests go through."""
    for overlay in APPLICATIONS:
        assert set(pod_templates(read_document(build(K8S / "overlays" / overlay)))) == set(GROUPS)


def test_a_pod_meets_the_restricted_standard(pod: dict[str, Any]) -> None:
    """A pod meets Kubernetes' restricted security standard, has a read-only root, and gets no API token."""
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod["automountServiceAccountToken"] is False
    assert all("emptyDir" in volume for volume in pod["volumes"])


def test_what_ray_writes_to_is_writable(pod: dict[str, Any]) -> None:
    """Under a read-only root, shared memory, /tmp and the home folder are volumes."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]]["emptyDir"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted.keys() == {"/dev/shm", "/tmp", "/home/prism"}
    assert mounted["/dev/shm"]["medium"] == "Memory"


def test_memory_is_what_was_asked_for(pod: dict[str, Any]) -> None:
    """A pod's memory request equals its limit, so that it is not killed for memory that its node promised to others."""
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


@pytest.mark.parametrize("group", GROUPS)
def test_the_object_store_leaves_room_in_shared_memory(rayservice: Object, group: str) -> None:
    """Ray's object store takes at most half of /dev/shm, and /dev/shm at most half of the memory limit."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    specifications = {"head": cluster["headGroupSpec"]} | {
        spec["groupName"]: spec for spec in cluster["workerGroupSpecs"]
    }
    pod = specifications[group]["template"]["spec"]
    [shm] = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "shm"]
    limit = parse_quantity(pod["containers"][0]["resources"]["limits"]["memory"])
    object_store = int(specifications[group]["rayStartParams"]["object-store-memory"])
    assert 2 * object_store <= parse_quantity(shm) <= limit / 2


def test_ray_gives_away_no_cpu_that_kubernetes_has_not_set_aside(rayservice: Object, application: Object) -> None:
    """The replicas of a node reserve at most the CPU that its pod requests."""
    templates = pod_templates(rayservice)
    groups = groups_of(rayservice)
    for pool in pools_of(application):
        group = groups[str(pool.label)]
        requested = float(
            parse_quantity(templates[group.name]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
        )
        num_on_one_node = -(-pool.num_replicas // group.num_nodes)
        assert num_on_one_node * pool.resources["CPU"] <= requested


def test_a_pod_lives_until_its_streams_have_drained(pod: dict[str, Any], config: PrismConfig) -> None:
    """Kubernetes waits longer than Ray drains, and Ray drains longer than Serve waits for a replica's requests."""
    [drain_s] = [
        float(variable["value"])
        for variable in pod["containers"][0]["env"]
        if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    ]
    graceful_s = max(deployment._deployment_config.graceful_shutdown_timeout_s for deployment in deployments_of(config))
    assert pod["terminationGracePeriodSeconds"] > drain_s > graceful_s


def test_a_pod_has_the_lean_way_in(pod: dict[str, Any], config: PrismConfig) -> None:
    """Each pod has the variables that ``prism serve`` sets for Ray's processes, and an HAProxy that is ending leaves
    streams as long as a request may take."""
    [container] = pod["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert LEAN.items() <= environment.items()
    [command] = entry_points(group="console_scripts", value="deployments.ray_serve.haproxy:run_haproxy")
    assert environment[BINARY] == f"/usr/local/bin/{command.name}"
    assert int(environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > config.router.request_timeout_s


def test_an_upgrade_outlives_the_longest_request(rayservice: Object, config: PrismConfig) -> None:
    """The old cluster stays until every request that it had accepted is over."""
    assert rayservice["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert rayservice["spec"]["rayClusterDeletionDelaySeconds"] > config.router.request_timeout_s


def test_ray_itself_asks_for_a_token(rayservice: Object) -> None:
    """Token authentication is switched on in KubeRay's own field, and no container switches it off."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    for template in pod_templates(rayservice).values():
        names = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
        assert names.isdisjoint({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"})


def test_the_operator_is_told_the_version_that_is_installed(rayservice: Object) -> None:
    """KubeRay chooses probes and authentication by `rayVersion`, so it must be the pinned one."""
    assert rayservice["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def test_the_operator_has_nothing_to_refuse(rayservice: Object) -> None:
    """KubeRay refuses labels in `rayStartParams`, and resources given in two places; the schema does not say so."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"].keys().isdisjoint({"labels", "num-cpus", "num-gpus", "memory", "resources"})


def test_the_image_brings_what_the_operator_calls() -> None:
    """The image has wget for KubeRay's readiness probe, and the compiler that vLLM needs at its start."""
    [packages] = [line for line in (K8S / "Dockerfile").read_text().splitlines() if "apt-get install" in line]
    assert {"wget", "g++"} <= set(packages.split())
