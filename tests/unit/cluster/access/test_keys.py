"""The entries of a file of keys: right ones are read, and hostile ones are refused without quoting them."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from cluster.access.keys import MAX_KEYS, KeyEntry, KeyRing, KeysError, hash_of, new_key, parse_entries

HASH = "a" * 64
SECRET = "prism-a-key-that-somebody-put-into-the-wrong-place"


def entry(**fields: object) -> KeyEntry:
    """Returns an entry with some fields."""
    return KeyEntry.model_validate({"tenant": "a", "sha256": HASH, **fields})


def test_json_and_yaml_mean_the_same() -> None:
    """A file in JSON and one in YAML give equal entries."""
    fields = {"tenant": "a", "sha256": HASH, "models": ["m"], "operator": True, "expires": "2027-01-01T00:00:00Z"}
    in_yaml = f"- tenant: a\n  sha256: {HASH}\n  models: [m]\n  operator: true\n  expires: 2027-01-01T00:00:00Z\n"
    assert parse_entries(json.dumps([fields]).encode()) == parse_entries(in_yaml.encode()) == [entry(**fields)]


def test_an_empty_file_has_no_keys() -> None:
    """A file without content is a list without entries."""
    assert parse_entries(b"") == parse_entries(b"[]") == parse_entries(b"# nobody yet\n") == []


@pytest.mark.parametrize(
    "text",
    [
        f"- tenant: a\n  sha256: {SECRET}",
        f"- {{tenant: '{SECRET} {SECRET}', sha256: {HASH}}}",
        f"- {{tenant: a, sha256: {HASH}, {SECRET}: 1}}",
        f"- {{tenant: a, sha256: {HASH}, requests_per_minute: {SECRET}}}",
        f"- {{tenant: a, sha256: {HASH}, requests_per_minute: 0}}",
        f"- {{tenant: a, sha256: {HASH}, expires: 2027-01-01}}",
        f"- {{tenant: a, sha256: {HASH.upper()}}}",
        f"- {{tenant: a, sha256: {HASH}, models: [[{SECRET}]]}}",
        f"{SECRET}: 1",
        f"- {SECRET}",
        f"- {{tenant: {SECRET}, tenant: b, sha256: {HASH}}}",
        f'[{{"tenant": "{SECRET}", "tenant": "b", "sha256": "{HASH}"}}]',
        "- "
        + "".join(f"{{<<: [&a{n} " for n in range(24))
        + "{k: 1}"
        + "".join(f", *a{n}]}}" for n in reversed(range(24))),
        f"!!python/object/apply:os.system [{SECRET}]",
        f'"{SECRET}',
        f"!!bool {SECRET}",
        "!!int ''",
        f"!!timestamp {SECRET}",
        "- {tenant: a, sha256: 1" + ":59" * 5_000 + "}",
        "\ufeff\0" + SECRET,
        "[" * 100_000,
        "- " * 100_000,
        "{a: " * 50_000,
    ],
    ids=lambda text: text[:60].replace(" ", "_").replace("\0", "0"),
)
def test_a_wrong_file_is_refused_and_not_quoted(text: str) -> None:
    """A file that is no list of entries is refused at once, and the message repeats nothing of its values."""
    started_s = time.monotonic()
    with pytest.raises(KeysError) as refusal:
        parse_entries(text.encode())
    assert time.monotonic() - started_s < 5
    assert SECRET not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert len(str(refusal.value)) < 500


def test_bytes_that_are_no_text_are_refused() -> None:
    """A file of arbitrary bytes is refused."""
    with pytest.raises(KeysError):
        parse_entries(bytes(range(256)))


def test_too_many_keys_are_refused() -> None:
    """A file with more keys than are read is refused."""
    with pytest.raises(KeysError, match="more than"):
        parse_entries(json.dumps([{}] * (MAX_KEYS + 1)).encode())


def test_a_ring_finds_a_key_by_its_hash_alone() -> None:
    """A key finds its own entry. Its hash, another key and no key find none."""
    key = new_key()
    mine = entry(tenant="mine", sha256=hash_of(key.encode()))
    ring = KeyRing([entry(), mine])
    assert ring.find(key.encode()) is mine
    wrong = [hash_of(key.encode()).encode(), HASH.encode(), b"", b"\xff\0", key.encode() + b" ", new_key().encode()]
    assert [ring.find(one) for one in wrong] == [None] * len(wrong)
    assert KeyRing([]).find(key.encode()) is None


def test_a_key_twice_is_refused() -> None:
    """Two entries with one hash are refused, because it would not be clear which one counts."""
    with pytest.raises(KeysError, match="entry 1: another entry"):
        KeyRing([entry(), entry(tenant="b")])


def test_new_keys_are_long_and_different() -> None:
    """Each new key is another one with 256 random bits, and its hash is plain SHA-256."""
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) == len("prism-") + 43
    assert all(hash_of(key.encode()) == hashlib.sha256(key.encode()).hexdigest() for key in keys)


def test_models_are_all_unless_some_are_named() -> None:
    """A key without ``models`` may use all of them, and a key with an empty list none."""
    assert entry().allows("m")
    assert entry(models=["m"]).allows("m")
    assert not entry(models=["n"]).allows("m")
    assert not entry(models=[]).allows("m")
