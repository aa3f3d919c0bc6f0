"""Starts Ray in this process: a cluster of this machine alone, whose files are all in one folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from pathlib import Path


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
