"""The corrections of Ray's configuration for HAProxy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from deployments.ray_serve.haproxy import mended

PORTS = {"metrics": 9101, "frontend": 8000, "stats": 8404}
FOLDER = Path("/folder")


def of_ray(host: str) -> str:
    """Returns the sections of Ray's HAProxy configuration that Prism reads, as Ray would write them for a host."""
    template = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.frontend_host }}", host)
    for name, port in PORTS.items():
        template = template.replace(f"{{{{ config.{name}_port }}}}", str(port))
    return template


@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
def test_only_the_way_in_is_a_port(host: str) -> None:
    """HAProxy offers statistics on Unix sockets only, and listens for clients at the address that Ray set."""
    binds = re.findall(r"(?m)^ *bind ([^\s{]+)$", mended(of_ray(host), FOLDER))
    assert sorted(binds) == sorted([f"unix@{FOLDER}/p", f"unix@{FOLDER}/s", f"{host}:8000"])


def test_a_request_is_told_when_it_came_and_is_not_spliced() -> None:
    """The frontend for clients sets the arrival header of the waterfall. Only responses are spliced."""
    before, frontend = mended(of_ray("*"), FOLDER).split("frontend http_frontend\n")
    assert frontend.startswith("    http-request set-header x-request-start t=%[date(0,us)]\n    bind *:8000\n")
    assert "splice-response" in before
    assert "splice-request" not in before + frontend


def test_a_configuration_that_is_not_known_is_refused() -> None:
    """If Ray's configuration has changed, HAProxy does not start without the corrections."""
    with pytest.raises(AssertionError, match="splice-request"):
        mended(of_ray("*").replace("splice-request", "splice-auto"), FOLDER)
