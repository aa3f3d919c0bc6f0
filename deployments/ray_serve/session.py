"""Starts Ray in this process, on this machine alone with all files in one folder, and deploys applications on it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import ray
from ray.serve.schema import ApplicationStatus

from deployments.ray_serve.status import controller_client, read_application_states

if TYPE_CHECKING:
    from pathlib import Path

    from ray.serve.schema import ServeDeploySchema

DEPLOY_POLL_S: Final = 0.25
"""The pause between two looks at the applications that are being deployed."""


def start_ray(folder: Path, *, host: str) -> None:
    """Starts Ray on one address, without its dashboard.

    Args:
        folder: Where Ray keeps its sockets, logs and spilled objects; the path must be short, because sockets' paths
            are limited.
        host: The address that Ray's own services are told to use.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        "local",  # never a cluster that RAY_ADDRESS names: the caller ends this one
        _node_ip_address=host,
        _temp_dir=str(folder),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )


def deploy(config: ServeDeploySchema) -> None:
    """Gives Serve a whole application file, as ``serve deploy`` and KubeRay do, and waits until all of it runs.

    Serve compares the file with what it runs already and changes the difference only.

    Raises:
        RuntimeError: An application could not be built or started; the message has Serve's reason.
    """
    controller_client().deploy_apps(config)
    waiting = [application.name for application in config.applications]
    while waiting:
        found = read_application_states()
        for name in [name for name in waiting if name in found]:
            status, message = found[name]
            if status == ApplicationStatus.DEPLOY_FAILED:
                raise RuntimeError(f"The application {name} was not deployed: {message}")
            if status == ApplicationStatus.RUNNING:
                waiting.remove(name)
        time.sleep(DEPLOY_POLL_S)
