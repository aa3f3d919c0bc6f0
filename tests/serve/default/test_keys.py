"""API keys on a running cluster: they come without a restart, tenants share nothing, and no key is shown anywhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import yaml

from cluster.access.keys import hash_of, new_key
from deployments.ray_serve.session import deploy
from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.servers import with_changes
from tests.helpers.waiting import until, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from deployments.local.launch import Cluster

CHAT = "/v1/chat/completions"
TENANTS = ("red", "blue", "operator")
NOTICED_S = 20.0
PICTURE = image(random_png(84, 84, 925))
LONG = text("Nine keys hang on the wall of the old house. " * 12)


class Keyring:
    """The keys of this module's tenants, and the file that the Router reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = {tenant: new_key() for tenant in TENANTS}

    def write(self, *tenants: str) -> None:
        """Replaces the file by one with the keys of some tenants."""
        hashes = {tenant: hash_of(self.keys[tenant].encode()) for tenant in tenants}
        entries = [
            {"tenant": tenant, "sha256": sha256, "operator": tenant == "operator", "requests_per_minute": 1000}
            for tenant, sha256 in hashes.items()
        ]
        new = self.path.with_suffix(".new")
        new.write_text(yaml.safe_dump(entries))
        new.replace(self.path)

    def of(self, tenant: str) -> dict[str, str]:
        """The headers of a tenant's request."""
        return {"authorization": f"Bearer {self.keys[tenant]}"}


def set_keys(path: Path | None) -> None:
    """Gives the running Router a file of keys, or none, as a new deployment of its application file does."""
    user_config = {"keys_file": str(path)} if path else {}
    deploy(with_changes({"Router": {"user_config": user_config}}).for_one_machine())


@pytest.fixture(scope="module")
def ring(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyring]:
    """The keys of a cluster that needs one for every request. Later modules need none again."""
    ring = Keyring(tmp_path_factory.mktemp("keys") / "keys.yaml")
    ring.write(*TENANTS)
    set_keys(ring.path)
    yield ring
    set_keys(None)
    wait_until(
        lambda: httpx.get(f"{cluster.url}/v1/models").status_code == httpx.codes.OK,
        NOTICED_S,
        "the Router still asks for keys",
    )


@pytest.fixture(scope="module")
async def keyed(ring: Keyring, cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the cluster, which has begun to ask for keys."""
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as client:

        async def asks_for_keys() -> bool:
            return (await client.get("/v1/models")).status_code == httpx.codes.UNAUTHORIZED

        await until(asks_for_keys, NOTICED_S, f"the Router does not ask for the keys in {ring.path}")
        yield client


async def figures(client: httpx.AsyncClient, ring: Keyring) -> tuple[float, float]:
    """Returns the runs of the tower and the tokens found in the prefix cache, read with the operator's key."""
    metrics = (await client.get("/metrics", headers=ring.of("operator"))).raise_for_status().text
    runs = re.findall(r'^prism_pictures_total\{pool="encoder".*stage="encode".* (\S+)$', metrics, re.MULTILINE)
    hits = re.findall(r"^vllm:prefix_cache_hits_total\{.* (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, runs)), sum(map(float, hits))


async def costs(client: httpx.AsyncClient, ring: Keyring, tenant: str, salt: str | None = None) -> tuple[float, float]:
    """Sends one picture and one long text as a tenant, and returns what that added to ``figures``."""
    before = await figures(client, ring)
    extra = {} if salt is None else {"cache_salt": salt}
    body = chat([LONG, PICTURE], max_tokens=1, **extra)
    (await client.post(CHAT, json=body, headers=ring.of(tenant))).raise_for_status()
    after = await figures(client, ring)
    return after[0] - before[0], after[1] - before[1]


async def test_tenants_share_neither_pictures_nor_prompts(keyed: httpx.AsyncClient, ring: Keyring) -> None:
    """A picture that another tenant has sent costs a run of the tower, and no prompt of theirs is found. Within a
    tenant both are kept. The same salt of two tenants is not the same."""
    assert await costs(keyed, ring, "red") == (1, 0)
    runs, hits = await costs(keyed, ring, "red")
    assert runs == 0
    assert hits > 0
    assert await costs(keyed, ring, "blue") == (1, 0)
    assert await costs(keyed, ring, "red", salt="x") == (1, 0)
    assert await costs(keyed, ring, "blue", salt="x") == (1, 0)
    assert (await costs(keyed, ring, "blue", salt="x"))[0] == 0


@pytest.mark.parametrize("path", ["/status", "/metrics"])
async def test_a_tenant_reads_no_figures(keyed: httpx.AsyncClient, ring: Keyring, path: str) -> None:
    """No figure of the cluster tells a tenant about another."""
    assert (await keyed.get(path, headers=ring.of("red"))).status_code == httpx.codes.FORBIDDEN
    assert (await keyed.get(path)).status_code == httpx.codes.UNAUTHORIZED
    assert (await keyed.get(path, headers=ring.of("operator"))).status_code == httpx.codes.OK
    assert (await keyed.get("/health")).status_code == httpx.codes.OK


async def test_keys_come_and_go_without_a_restart(keyed: httpx.AsyncClient, ring: Keyring) -> None:
    """A key that is taken out of the file stops working within seconds, and one that is put back works again. The other
    keys work all the time."""

    async def status_of(tenant: str) -> int:
        return (await keyed.get("/v1/models", headers=ring.of(tenant))).status_code

    async def is_out() -> bool:
        assert await status_of("red") == httpx.codes.OK
        return await status_of("blue") == httpx.codes.UNAUTHORIZED

    async def is_in() -> bool:
        assert await status_of("red") == httpx.codes.OK
        return await status_of("blue") == httpx.codes.OK

    ring.write("red", "operator")
    await until(is_out, NOTICED_S, "the key that is gone still works")
    ring.write(*TENANTS)
    await until(is_in, NOTICED_S, "the new key does not work")


async def test_no_key_can_be_read_anywhere(keyed: httpx.AsyncClient, ring: Keyring, cluster: Cluster) -> None:
    """After all that, and after requests that fail, no file of logs, no metric, no error and no command line has a
    key."""
    found = [(await keyed.get("/metrics", headers=ring.of("operator"))).text]
    for body in ({}, chat([text("x")], max_tokens=-1), chat([image(b"x")])):
        response = await keyed.post(CHAT, json=body, headers=ring.of("red"))
        assert response.is_error
        found.append(response.text + str(response.headers))
    found += [log.read_text(errors="replace") for log in cluster.logs.rglob("*") if log.is_file()]
    processes = psutil.Process().children(recursive=True)
    found += [" ".join(process.cmdline()) for process in processes]
    assert len(processes) > 4
    assert any('"tenant": "red"' in one for one in found)
    secrets = [*ring.keys.values(), *(hash_of(key.encode()) for key in ring.keys.values())]
    assert not [secret for secret in secrets if any(secret in one for one in found)]
