"""The sentences about wrong keys and values of application files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deployments.local.app_file import ApplicationFile, ApplicationFileError
from deployments.local.problems import WANTED
from loadtest.servers import APP

if TYPE_CHECKING:
    from pathlib import Path


def problems(folder: Path, change: dict[str, Any]) -> list[str]:
    """Reads the embedded default with changed ``args`` and returns what is wrong with it, without the common path."""
    content = yaml.safe_load(APP.read_text())
    args = content["applications"][0]["args"]
    for key, value in change.items():
        args[key] = {**args.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "app.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ApplicationFileError) as caught:
        ApplicationFile.read(path)
    return [problem.removeprefix("applications.args.") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"modle": {}}, "modle: there is no such key; did you mean model?"),
        ({"encoder": {"num_thread": 1}}, "encoder.num_thread: there is no such key; did you mean num_threads?"),
        (
            {"encoder": {"batch_patches": 1}},
            "encoder.batch_patches: it belongs below deployments: {name: VisionEncoder, user_config: {batch_p",
        ),
        ({"media": {"zzz": 1}}, "media.zzz: there is no such key; there are ca_file, fetch_timeout_s, "),
        (
            {"decoder": {"max_picture_bytes": 1}},
            "decoder.max_picture_bytes: there is no such key here; it belongs below applications.args.media",
        ),
        ({"encoder": {"num_threads": "many"}}, 'encoder.num_threads: it must be an integer, not "many"'),
        ({"encoder": {"num_threads": 1.5}}, "encoder.num_threads: it must be an integer, not 1.5"),
        ({"encoder": {"num_threads": 0}}, "encoder.num_threads: it must be at least 1, not 0"),
        ({"router": {"request_timeout_s": 0}}, "router.request_timeout_s: it must be above 0, not 0"),
        ({"decoder": {"gpu_memory_utilization": 2}}, "decoder.gpu_memory_utilization: it must be at most 1, not 2"),
        ({"encoder": {"device": "tpu"}}, "encoder.device: it must be 'cpu' or 'cuda', not \"tpu\""),
        ({"decoder": {"enforce_eager": "maybe"}}, 'decoder.enforce_eager: it must be true or false, not "maybe"'),
        ({"decoder": {"bind_cores": "a"}}, "decoder.bind_cores: it must match "),
        ({"encoder": 3}, "encoder: it must be a mapping, not 3"),
        ({"encoder": {"resources": []}}, "encoder.resources: it must be a mapping, not []"),
        ({"media": {"trusted_hosts": "me"}}, 'media.trusted_hosts: it must be a list, not "me"'),
        (
            {"decoder": {"tensor_parallel_size": 2}},
            "decoder: bind_cores needs one entry per worker on CPU: '0|1' for 2",
        ),
        ({"model": {"served_name": 3}}, "model.served_name: it must be text, not 3"),
    ],
)
def test_a_problem_names_the_key_and_what_would_be_right(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """The sentence about a wrong key or value says where it is, what must be there, and what was given."""
    [said] = problems(tmp_path, change)
    assert said.startswith(problem)
    assert "pydantic" not in said


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    """Every wrong value of a file is in the error, each once."""
    said = problems(tmp_path, {"router": {"request_timeout_s": 0}, "encoder": {"num_threads": -1, "device": "a"}})
    assert sorted(problem.partition(":")[0] for problem in said) == [
        "encoder.device",
        "encoder.num_threads",
        "router.request_timeout_s",
    ]


def test_a_value_of_rays_own_is_said_in_the_same_words(tmp_path: Path) -> None:
    """A wrong value outside ``args`` is named by its key, without an index of a list."""
    path = tmp_path / "app.yaml"
    path.write_text(APP.read_text().replace("port: 8000", "port: high").replace("route_prefix: /", "route_prefix: 7"))
    with pytest.raises(ApplicationFileError) as caught:
        ApplicationFile.read(path)
    assert caught.value.problems == (
        'http_options.port: it must be an integer, not "high"',
        "applications.route_prefix: it must be text, not 7",
    )


@pytest.mark.parametrize(
    "text",
    [
        b"1: 2",
        b"yes: 3",
        b"~: 2",
        b"2020-01-01: 3",
        b"applications: [{args: {decoder: {1: 2}}}]",
        b"applications: [{args: {model: {served_name: 2020-02-31}}}]",
        b"applications: &a [*a]",
        b"applications: [{args: {media: {trusted_hosts: &a [*a]}}}]",
        b"applications: [{args: &a {model: *a}}]",
        b"applications: [{runtime_env: {py_modules: 3}}]",
        b"applications: [{args: }]",
        b"applications: [{args: {encoder: !!int foo}}]",
        b"a: !!bool foo",
        b"a: " + b"9" * 5000,
        b"[" * 5000,
        b"\xff\xfe\x00",
        b"a: b: c",
        b"a: {b: 1, ",
    ],
    ids=range(18),
)
def test_any_file_gets_a_sentence(text: bytes, tmp_path: Path) -> None:
    """A file of any content is refused with sentences and never with another exception."""
    path = tmp_path / "app.yaml"
    path.write_bytes(text)
    with pytest.raises(ApplicationFileError) as caught:
        ApplicationFile.read(path)
    assert all(caught.value.problems)


def test_a_file_that_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    """A folder in place of a file is refused with a sentence."""
    with pytest.raises(ApplicationFileError, match="cannot be read"):
        ApplicationFile.read(tmp_path)


def test_no_sentence_lacks_what_it_needs() -> None:
    """Each sentence uses only what pydantic says about its kind of error."""
    names = {"given", "pattern", "expected", "gt", "ge", "lt", "le", "error"}
    for sentence in WANTED.values():
        sentence.format_map(dict.fromkeys(names, "x"))
