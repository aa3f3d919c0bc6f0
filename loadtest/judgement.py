"""Judges the records of a run by service level objectives.

In: a ``RecordedRun`` and an ``Slo``. Out: a ``Verdict``. Percentiles are over whole answers. Shares are of all requests
that were sent; a request that had not ended when the run did counts as failed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadtest.records import OUTCOMES, RecordedRun, RequestRecord
from loadtest.report import MAX_LAG_MS, percentile
from loadtest.slo import LEVELS, Slo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HELD: Final = 0
BROKEN: Final = 1
VOID: Final = 2


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One objective and the figure that was found.

    Args:
        name: The name of the figure.
        limit: The objective as text.
        found: The figure as text.
        is_held: True if the figure meets the objective.
    """

    name: str
    limit: str
    found: str
    is_held: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of a run.

    Args:
        summary: Lines about the run.
        void: Why the run says nothing about the server; otherwise empty.
        lines: One line per objective.
    """

    summary: tuple[str, ...]
    void: str
    lines: tuple[VerdictLine, ...]

    @property
    def code(self) -> int:
        """The exit code."""
        if self.void:
            return VOID
        return HELD if all(line.is_held for line in self.lines) else BROKEN

    def text(self) -> str:
        """The judgement as a table."""
        rows = [f"{'':<24}{'limit':>12}{'found':>12}"]
        rows += [
            f"{line.name:<24}{line.limit:>12}{line.found:>12}  {'held' if line.is_held else 'BROKEN'}"
            for line in self.lines
        ]
        last = f"VOID: {self.void}" if self.void else ("All objectives are met.", "An objective is not met.")[self.code]
        return "\n".join([*self.summary, "", *rows, "", last])


def judge(run: RecordedRun, slo: Slo) -> Verdict:
    """Judges a run. A void run has its lines too, because they may help to find the reason."""
    if not run.records:
        return Verdict((run.about,), "no request was sent", ())
    lags_ms = sorted(record.lag_s * 1000 for record in run.records)
    late_ms = percentile(lags_ms, 0.99)
    void = f"the p99 of the lag is {late_ms:.1f} ms, and it must be at most {MAX_LAG_MS:g} ms"
    lag = f"lag: p50 {percentile(lags_ms, 0.5):.2f} ms, p99 {late_ms:.2f} ms, longest {lags_ms[-1]:.2f} ms"
    goodput = f"goodput: {sum(is_good(one, slo) for one in run.records) / duration_s(run.records):.2f} requests/s"
    lines = (*_percentiles(run.records, slo), *_shares(run.records, slo))
    return Verdict((run.about, *_counts(run.records), lag, goodput), void if late_ms > MAX_LAG_MS else "", lines)


def times_s(records: Sequence[RequestRecord], name: str) -> list[float]:
    """All values of a time over the answers, in ascending order.

    Args:
        records: The requests.
        name: The name of the time, one of ``slo.JUDGED``.
    """
    if name == "icl_s":
        return sorted(gap_s for record in records for gap_s in record.icl_s)
    answers = (record for record in records if record.outcome == "answered")
    return sorted(value for record in answers if (value := getattr(record, name)) is not None)


def is_good(record: RequestRecord, slo: Slo) -> bool:
    """Returns True if the request was answered within each limit of the goodput. An answer of one token has no ITL."""
    values = {name: getattr(record, name) for name in slo.good_s}
    return record.outcome == "answered" and all(
        value is None or value <= slo.good_s[name] for name, value in values.items()
    )


def duration_s(records: Sequence[RequestRecord]) -> float:
    """The time from the start of the schedule to the end of the last request."""
    return max(record.end_s for record in records)


def _counts(records: Sequence[RequestRecord]) -> Iterator[str]:
    counts = Counter(record.outcome for record in records)
    all_s = duration_s(records)
    ends = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    yield f"{len(records)} requests in {all_s:.1f} s ({len(records) / all_s:.2f} requests/s): {ends}"
    causes = Counter(record.cause for record in records if record.cause)
    yield from (f"  {count} x {cause}" for cause, count in causes.most_common())


def _percentiles(records: Sequence[RequestRecord], slo: Slo) -> Iterator[VerdictLine]:
    for (name, level), limit_s in slo.percentiles_s.items():
        found = times_s(records, name)
        value_s = percentile(found, LEVELS[level]) if found else None
        is_held = value_s is not None and value_s <= limit_s
        text = "no data" if value_s is None else f"{value_s:.4f}"
        yield VerdictLine(f"{name} {level}", f"≤ {limit_s:g}", text, is_held)


def _shares(records: Sequence[RequestRecord], slo: Slo) -> Iterator[VerdictLine]:
    counts, num_all = Counter(record.outcome for record in records), len(records)
    failed = (counts["failed"] + counts["unfinished"]) / num_all
    refused = counts["refused"] / num_all
    if (least := slo.min_good_share) is not None:
        good = sum(is_good(record, slo) for record in records) / num_all
        yield VerdictLine("good share", f"≥ {least:g}", f"{good:.4f}", good >= least)
    yield VerdictLine("failed share", f"≤ {slo.max_failed_share:g}", f"{failed:.4f}", failed <= slo.max_failed_share)
    yield VerdictLine(
        "refused share", f"≤ {slo.max_refused_share:g}", f"{refused:.4f}", refused <= slo.max_refused_share
    )
