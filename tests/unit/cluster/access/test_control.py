"""Requests get in by their keys, and the keys change while requests run."""

from __future__ import annotations

import asyncio
import datetime
import threading
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client import REGISTRY

from cluster.access import control, keys_file
from cluster.access.control import AccessControl
from cluster.access.keys import KeysError, hash_of
from cluster.errors import InvalidKey, ModelNotAllowed, OperatorsOnly, PoolUnavailable, RateLimited
from tests.helpers.http_surface import logged

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = b"prism-the-key", b"prism-another-key"
MODEL = "m"


def write(path: Path, **keys: dict[str, object]) -> None:
    """Replaces a file of keys. Each argument is a tenant, with the fields of its entry and the key in ``key``."""
    entries = [
        {"tenant": tenant, "sha256": hash_of(bytes(fields["key"])), **{k: v for k, v in fields.items() if k != "key"}}  # type: ignore[call-overload]
        for tenant, fields in keys.items()
    ]
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(entries))
    new.replace(path)


def bearer(key: bytes) -> list[bytes]:
    """Returns the headers ``Authorization`` of a key."""
    return [b"Bearer " + key]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Returns the path of a file with one key."""
    path = tmp_path / "keys.yaml"
    write(path, a={"key": KEY, "max_concurrent": 2, "requests_per_minute": 4})
    return path


@pytest.fixture
async def access(path: Path) -> AccessControl:
    """Returns an access control that uses this file."""
    access = AccessControl(clock=lambda: 0.0)
    await access.follow(str(path))
    return access


def test_without_a_file_everybody_gets_in() -> None:
    """Without a file of keys no header is looked at."""
    access = AccessControl.without_keys()
    assert access.is_open
    assert access.caller([]) is access.caller([b"\xff"]) is None


async def test_nobody_gets_in_before_the_settings_have_come(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Until the first ``follow`` no key and no lack of one lets anybody in. The warning waits, too."""
    access = AccessControl()
    access.listens_on("0.0.0.0")
    assert not access.is_open
    for headers in ([], bearer(KEY)):
        with pytest.raises(PoolUnavailable, match="starting"):
            access.caller(headers)
    await access.follow(str(path))
    assert access.caller(bearer(KEY))
    assert capsys.readouterr().err == ""
    await access.follow(None)
    assert "ANYBODY CAN USE THIS SERVER" in capsys.readouterr().err


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [KEY],
        [b"Basic " + KEY],
        [b"Bearer" + KEY],
        [b"Bearer " + KEY + b"x"],
        [b"Bearer " + KEY + b" " + KEY],
        [b"Bearer \xff\xfe\0"],
        [b"Bearer " + KEY, b"Bearer " + KEY],
        [b"Bearer " + KEY, b"Basic x"],
        [b"Bearer " + b"x" * 10_000],
        [b"Bearer " + hash_of(KEY).encode()],
    ],
    ids=lambda headers: b",".join(headers)[:40].hex() or "none",
)
async def test_what_is_no_valid_key_is_refused_and_not_repeated(access: AccessControl, headers: list[bytes]) -> None:
    """Every header but one with a valid key is refused, in words that do not repeat it."""
    with pytest.raises(InvalidKey) as refusal:
        access.caller(headers)
    assert "prism-the-key" not in str(refusal.value)


@pytest.mark.parametrize("header", [b"Bearer " + KEY, b"bearer  " + KEY, b" BEARER " + KEY + b" "])
async def test_a_valid_key_names_its_tenant(access: AccessControl, header: bytes) -> None:
    """The scheme may have any case, and blanks do not count."""
    caller = access.caller([header])
    assert caller is not None
    assert (caller.tenant, caller.priority, caller.is_operator) == ("a", 0, False)


async def test_limits_count_over_all_requests_of_a_key(access: AccessControl) -> None:
    """Requests of one key share its limits, and leaving twice gives one place back."""
    callers = [access.caller(bearer(KEY)) for _ in range(3)]
    first, second, third = [caller for caller in callers if caller]
    first.enter(MODEL)
    second.enter(MODEL)
    with pytest.raises(RateLimited):
        third.enter(MODEL)
    third.leave()  # it never entered
    first.leave()
    first.leave()
    third.enter(MODEL)
    fourth = access.caller(bearer(KEY))
    assert fourth is not None
    with pytest.raises(RateLimited):
        fourth.enter(MODEL)


async def test_a_model_that_is_not_allowed_uses_nothing(access: AccessControl, path: Path) -> None:
    """A key with a list of models is refused for others, and no request is counted."""
    write(path, a={"key": KEY, "models": ["n"], "requests_per_minute": 1})
    await access.look(1)
    caller = access.caller(bearer(KEY))
    assert caller is not None
    with pytest.raises(ModelNotAllowed):
        caller.enter(MODEL)
    caller.enter("n")


async def test_new_keys_count_at_the_next_look(access: AccessControl, path: Path) -> None:
    """A key that is new gets in, one that is gone does not, and what a key has used stays used."""
    caller = access.caller(bearer(KEY))
    assert caller is not None
    for _ in range(2):
        caller.enter(MODEL)
        caller.leave()
    write(path, a={"key": KEY, "requests_per_minute": 8}, b={"key": OTHER})
    await access.look(1)
    for _ in range(2):
        caller.enter(MODEL)
    with pytest.raises(RateLimited):
        caller.enter(MODEL)
    assert access.caller(bearer(OTHER))
    write(path, b={"key": OTHER})
    await access.look(1)
    with pytest.raises(InvalidKey):
        access.caller(bearer(KEY))
    assert REGISTRY.get_sample_value("prism_keys") == 1


async def test_a_broken_file_keeps_the_keys_and_is_told_once(access: AccessControl, path: Path) -> None:
    """A file that cannot be read changes nothing. The log has it once, without its content, and a metric shows it."""
    path.write_text("- prism-a-secret: [")  # noqa: ASYNC240
    with logged() as records:
        await access.look(1)
        await access.look(1)
    [record] = [record for record in records if record["levelname"] == "ERROR"]
    assert "prism-a-secret" not in record["message"]
    assert access.caller(bearer(KEY))
    assert REGISTRY.get_sample_value("prism_keys_broken") == 1
    write(path, b={"key": OTHER})
    await access.look(1)
    assert access.caller(bearer(OTHER))
    assert REGISTRY.get_sample_value("prism_keys_broken") == 0


async def test_a_file_that_was_never_right_lets_nobody_in(tmp_path: Path) -> None:
    """If the file that the settings name cannot be read, nobody gets in until it can."""
    access, path = AccessControl(), tmp_path / "keys.yaml"
    for _ in range(2):
        with pytest.raises(KeysError):
            await access.follow(str(path))
        with pytest.raises(InvalidKey):
            access.caller(bearer(KEY))
    write(path, a={"key": KEY})
    await access.look(1)
    assert access.caller(bearer(KEY))
    with pytest.raises(KeysError):
        await access.follow(str(tmp_path / "another"))
    with pytest.raises(InvalidKey):
        access.caller(bearer(KEY))
    await access.follow(None)
    assert access.caller([]) is None


async def test_the_watch_reads_changes_and_counts_routers(access: AccessControl, path: Path) -> None:
    """The watch takes up a new file and the number of Routers by itself. A look that fails does not end it."""
    num_routers, num_looks = 1, 0

    def count() -> int:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 1:
            raise ZeroDivisionError
        return num_routers

    watch = asyncio.create_task(access.watch(count, period_s=0.0))
    write(path, b={"key": OTHER, "requests_per_minute": 8})
    async with asyncio.timeout(10):
        while True:
            try:
                caller = access.caller(bearer(OTHER))
                break
            except InvalidKey:
                await asyncio.sleep(0)
        assert caller is not None
        caller.enter(MODEL)
        num_routers = 4
        while dict(caller.headers())[b"x-ratelimit-reset-requests"] != b"0s":  # noqa: ASYNC110
            await asyncio.sleep(0)
    watch.cancel()
    assert dict(caller.headers())[b"x-ratelimit-remaining-requests"] == b"8"


async def test_a_key_ends_at_its_time(path: Path) -> None:
    """A key is valid until the time that its entry names."""
    now_s = 0.0
    access = AccessControl(now_s=lambda: now_s)
    write(path, a={"key": KEY, "expires": datetime.datetime.fromtimestamp(1000, datetime.UTC)})
    await access.follow(str(path))
    now_s = 999.0
    assert access.caller(bearer(KEY))
    now_s = 1000.0
    with pytest.raises(InvalidKey, match="expired"):
        access.caller(bearer(KEY))


@pytest.mark.parametrize(
    ("host", "is_private"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org")],
)
def test_operators_need_a_key_or_loopback(host: str, is_private: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Without keys only a server on loopback answers operators. Any other one warns, once in the log and once on the
    standard error."""
    access = AccessControl.without_keys()
    with logged() as records:
        access.listens_on(host)
    warned = [record for record in records if "ANYBODY CAN USE THIS SERVER" in record["message"]]
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ANYBODY CAN USE THIS SERVER")]
    assert len(warned) == len(shown) == (not is_private and bool(host))
    if is_private:
        access.check_operator(None)
    else:
        with pytest.raises(OperatorsOnly, match="keys_file"):
            access.check_operator(None)


async def test_operators_are_those_whose_entry_says_so(access: AccessControl, path: Path) -> None:
    """With keys loopback does not help: the key's entry must say ``operator: true``."""
    access.listens_on("127.0.0.1")
    with pytest.raises(OperatorsOnly, match="operator: true"):
        access.check_operator(access.caller(bearer(KEY)))
    write(path, a={"key": KEY, "operator": True, "priority": 3})
    await access.look(1)
    caller = access.caller(bearer(KEY))
    access.check_operator(caller)
    assert caller is not None
    assert caller.priority == 3


async def test_a_read_that_hangs_is_told_and_the_file_is_read_later(
    access: AccessControl, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file system hangs, the keys of before stay and the metric says so. A change is taken up afterwards."""
    goes_on, read = threading.Event(), keys_file._read

    def hanging(file: Path) -> bytes:
        goes_on.wait(30)
        return read(file)

    monkeypatch.setattr(keys_file, "_read", hanging)
    monkeypatch.setattr(control, "READ_S", 0.05)
    write(path, b={"key": OTHER})
    await access.look(1)
    assert access.caller(bearer(KEY))
    assert REGISTRY.get_sample_value("prism_keys_broken") == 1
    goes_on.set()
    monkeypatch.setattr(control, "READ_S", 30.0)
    await access.look(1)
    assert access.caller(bearer(OTHER))
    assert REGISTRY.get_sample_value("prism_keys_broken") == 0
