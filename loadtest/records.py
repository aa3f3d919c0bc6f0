"""Records of requests: one JSON line for each, between a first and a last line about the whole run.

Locust writes them with ``--record FILE``, and ``verdict`` reads them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from loadtest.fields import BadFields, Fields

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import TextIO

RUN_FORMAT: Final = "prism-load-1"
Outcome = Literal["answered", "refused", "failed", "unfinished"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request of a run. Times are in seconds, and ``client`` defines the latencies.

    Args:
        index: The place of its arrival in the schedule, from 0.
        kind: The group of its figures.
        at_s: When it should have been sent, from the start of the schedule. For a turn that waited for the turn before
            it, this is when that one ended.
        lag_s: How much later than ``at_s`` it was sent.
        latency_s: From sending to the end, whatever the end was.
        outcome: ``answered``, ``refused`` (429 with ``Retry-After``), ``failed``, or ``unfinished`` at the end of the
            run.
        cause: Why it was not answered; otherwise empty.
        ttft_s: The TTFT of an answer.
        itl_s: The ITL of an answer with two tokens or more.
        icl_s: The ICL of each gap of an answer.
        num_tokens: The tokens of the answer as the usage counts them; 0 if unknown.
    """

    index: int
    kind: str
    at_s: float
    lag_s: float
    latency_s: float
    outcome: Outcome
    cause: str = ""
    ttft_s: float | None = None
    itl_s: float | None = None
    icl_s: tuple[float, ...] = ()
    num_tokens: int = 0

    @property
    def ttft_scheduled_s(self) -> float | None:
        """The TTFT from the scheduled arrival."""
        return None if self.ttft_s is None else self.ttft_s + self.lag_s

    @property
    def end_s(self) -> float:
        """When it ended, from the start of the schedule."""
        return self.at_s + self.lag_s + self.latency_s

    def packed(self) -> dict[str, Any]:
        """The record as an object for JSON, with times in whole microseconds and without empty fields."""
        full = asdict(self) | {"icl_s": [round(gap_s, 6) for gap_s in self.icl_s]}
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in full.items()}
        return {name: value for name, value in rounded.items() if value not in (None, "", [])}


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The content of a file of records.

    Args:
        about: The source of the arrivals and the address of the server, in words.
        records: The requests, in the order of their scheduled times.
    """

    about: str
    records: list[RequestRecord]


class RecordWriter:
    """Writes a file of records. The file is complete only after ``end``."""

    def __init__(self, file: TextIO, about: str) -> None:
        self._file: Final = file
        self._num_records = 0
        self._write({"format": RUN_FORMAT, "about": about})

    def add(self, packed: Mapping[str, Any]) -> None:
        """Writes one record in the form of ``RequestRecord.packed``."""
        self._num_records += 1
        self._write(packed)

    def end(self, num_lost_workers: int) -> None:
        """Writes the last line and closes the file.

        Args:
            num_lost_workers: How many workers vanished during the run; their requests are not in the file.
        """
        self._write({"num_records": self._num_records, "num_lost_workers": num_lost_workers})
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def read_run(path: Path) -> RecordedRun:
    """Reads a file of records.

    Raises:
        BadFields: A line is wrong, the last line is missing, or workers were lost. The message names the line.
        OSError: The file cannot be read.
    """
    lines = [_parsed(path, number, line) for number, line in enumerate(path.read_text().splitlines(), 1)]
    if len(lines) < 2 or "num_records" not in lines[-1]:
        raise BadFields(f"{path}: the last line is missing, so the run did not end by itself")
    first, last = Fields(lines[0], f"{path}: line 1"), Fields(lines[-1], f"{path}: line {len(lines)}")
    if (found := first.text("format")) != RUN_FORMAT:
        raise first.wrong("format", RUN_FORMAT, found)
    about = first.text("about")
    first.end()
    records = [_record(Fields(line, f"{path}: line {number}")) for number, line in enumerate(lines[1:-1], 2)]
    if (found := last.whole("num_records", least=0)) != len(records):
        raise last.wrong("num_records", f"the number of records, which is {len(records)}", found)
    if lost := last.whole("num_lost_workers", least=0):
        raise BadFields(f"{path}: {lost} of the workers vanished during the run, so its load was not the schedule's")
    last.end()
    return RecordedRun(about, sorted(records, key=lambda record: record.at_s))


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadFields(f"{path}: line {number} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadFields(f"{path}: line {number} is no object")
    return value


def _record(fields: Fields) -> RequestRecord:
    outcome = fields.text("outcome")
    known = next((one for one in OUTCOMES if one == outcome), None)
    if known is None:
        raise fields.wrong("outcome", f"one of {', '.join(OUTCOMES)}", outcome)
    gaps = fields.items("icl_s", default=())
    if not all(isinstance(gap, float | int) and gap >= 0 for gap in gaps):
        raise fields.wrong("icl_s", "a list of numbers from 0 on", gaps)
    record = RequestRecord(
        index=fields.whole("index", least=0),
        kind=fields.text("kind"),
        at_s=fields.number("at_s"),
        lag_s=fields.number("lag_s"),
        latency_s=fields.number("latency_s"),
        outcome=known,
        cause=fields.text("cause", default=""),
        ttft_s=fields.number("ttft_s", default=None),
        itl_s=fields.number("itl_s", default=None),
        icl_s=tuple(gaps),
        num_tokens=fields.whole("num_tokens", least=0, default=0),
    )
    fields.end()
    if (known == "answered") != (record.ttft_s is not None):
        raise fields.wrong("ttft_s", "there if the request was answered, and only then", record.ttft_s)
    return record
