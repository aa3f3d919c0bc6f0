"""Records of requests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from loadtest.fields import BadFields
from loadtest.records import RecordWriter, RequestRecord, read_run

if TYPE_CHECKING:
    from pathlib import Path

ANSWERED = RequestRecord(4, "text", 2.0, 0.001, 0.5, "answered", "", 0.25, 0.02, (0.01, 0.03), 3)
REFUSED = RequestRecord(2, "new picture", 1.0, 0.002, 0.01, "refused", "429 overloaded")


def write(path: Path, *records: RequestRecord, num_lost_workers: int = 0) -> None:
    """Writes a file of records."""
    writer = RecordWriter(path.open("w"), "a test")
    for record in records:
        writer.add(record.packed())
    writer.end(num_lost_workers)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A reader gets equal records, in the order of their scheduled times."""
    path = tmp_path / "run.jsonl"
    write(path, ANSWERED, REFUSED)
    run = read_run(path)
    assert run.records == [REFUSED, ANSWERED]
    assert run.about == "a test"
    assert ANSWERED.ttft_scheduled_s == pytest.approx(0.251)
    assert ANSWERED.end_s == pytest.approx(2.501)


def test_a_run_that_did_not_end_is_refused(tmp_path: Path) -> None:
    """Without its last line a file says nothing, and a run that lost a worker was not the schedule's."""
    path = tmp_path / "run.jsonl"
    write(path, ANSWERED, num_lost_workers=1)
    with pytest.raises(BadFields, match="1 of the workers vanished"):
        read_run(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(BadFields, match="the last line is missing"):
        read_run(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outcome": "lost"}, "line 2: outcome: it must be one of answered"),
        ({"lag_s": -1}, "line 2: lag_s: it must be a number from 0 on, not -1"),
        ({"icl_s": ["1"]}, "line 2: icl_s"),
        ({"ttft_s": None}, "line 2: ttft_s: it must be there if the request was answered"),
        ({"outcome": "failed"}, "line 2: ttft_s"),
        ({"more": 1}, "line 2: more: there is no such field"),
    ],
)
def test_a_wrong_record_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    """The message names the line and the field."""
    path = tmp_path / "run.jsonl"
    write(path, ANSWERED)
    first, record, last = path.read_text().splitlines()
    changed = {name: value for name, value in {**json.loads(record), **change}.items() if value is not None}
    path.write_text("\n".join([first, json.dumps(changed), last]))
    with pytest.raises(BadFields, match=words):
        read_run(path)
