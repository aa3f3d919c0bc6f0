"""The table and the files of a run of chaos, and the sum of several runs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from loadtest.chaos.judging import Outcome, judge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from loadtest.chaos.judging import ChaosRecord
    from loadtest.chaos.killing import Kill
    from loadtest.chaos.running import ChaosRun

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
CALM: Final = "none"
"""The name for requests that ended before the first kill or after the cluster was whole again."""


@dataclass
class ChaosTally:
    """Requests by outcome, kind of request, and the kill that they met.

    Args:
        by_kill: Kill → outcome → requests. ``none`` is for requests that met no kill.
        by_kind: Kind of request → outcome → requests.
        causes: Outcome and cause → requests.
        whole_s: Kind of kill → the seconds until the cluster was whole again, of each.
        gone_s: Kind of kill → the seconds until the process and its replica had ended, of each.
        longest_cut_s: The longest time from a cut connection to the answer of the retry.
        num_broken: Kills after which the cluster did not become whole, and replicas that were replaced without a kill.
    """

    by_kill: dict[str, Counter[str]] = field(default_factory=dict)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    causes: Counter[str] = field(default_factory=Counter)
    whole_s: dict[str, list[float]] = field(default_factory=dict)
    gone_s: dict[str, list[float]] = field(default_factory=dict)
    longest_cut_s: float = 0.0
    num_broken: int = 0

    @classmethod
    def of(cls, run: ChaosRun) -> ChaosTally:
        """Judges every request of a run."""
        tally = cls(num_broken=int(run.was_replaced))
        for kill in run.kills:
            kind = f"{kill.part}:{kill.name}"
            tally.whole_s.setdefault(kind, [])
            tally.num_broken += kill.is_given_up
            if kill.whole_s is not None:
                tally.whole_s[kind].append(round(kill.whole_s - kill.at_s, 1))
            if kill.gone_s is not None:
                tally.gone_s.setdefault(kind, []).append(round(kill.gone_s - kill.at_s, 1))
        for record in run.records:
            outcome, cause = judge(record, run.expected[record.index], run.kills)
            tally.by_kill.setdefault(met(record, run.kills), Counter())[outcome] += 1
            tally.by_kind.setdefault(record.kind, Counter())[outcome] += 1
            if cause:
                tally.causes[f"{outcome}: {cause}"] += 1
            if outcome == "cut":
                tally.longest_cut_s = max(tally.longest_cut_s, record.back_s - record.ended_s)
        return tally

    def add(self, other: ChaosTally) -> None:
        """Adds the figures of another run."""
        for mine, theirs in ((self.by_kill, other.by_kill), (self.by_kind, other.by_kind)):
            for name, counts in theirs.items():
                mine.setdefault(name, Counter()).update(counts)
        for mine_s, theirs_s in ((self.whole_s, other.whole_s), (self.gone_s, other.gone_s)):
            for name, times_s in theirs_s.items():
                mine_s.setdefault(name, []).extend(times_s)
        self.causes.update(other.causes)
        self.longest_cut_s = max(self.longest_cut_s, other.longest_cut_s)
        self.num_broken += other.num_broken

    @property
    def is_good(self) -> bool:
        """Returns True if requests were answered, none was lost, and the cluster became whole after each kill."""
        total = self.total()
        return bool(total["right"]) and not total["lost"] and not self.num_broken

    def total(self) -> Counter[str]:
        """All requests by outcome."""
        return sum(self.by_kind.values(), Counter())

    def text(self) -> str:
        """The tables for a terminal."""
        lines = [f"{'kill':<20}{'times':>6}{'gone s':>9}{'whole s':>9}" + _heads()]
        for name in sorted(self.by_kill.keys() | self.whole_s.keys()):
            times = [
                len(self.whole_s.get(name, ())) or "",
                _middle(self.gone_s.get(name)),
                _middle(self.whole_s.get(name)),
            ]
            figures = f"{times[0]:>6}{times[1]:>9}{times[2]:>9}"
            lines.append(f"{name:<20}{figures}{_counts(self.by_kill.get(name, Counter()))}")
        lines += ["", f"{'requests':<44}" + _heads()]
        lines += [f"{kind:<44}{_counts(counts)}" for kind, counts in sorted(self.by_kind.items())]
        lines += [f"{'all':<44}{_counts(self.total())}", ""]
        lines += [f"{count} x {cause}" for cause, count in self.causes.most_common()]
        lines += [f"longest time from a cut connection to the right answer: {self.longest_cut_s:.1f} s"]
        if self.num_broken:
            lines += [f"{self.num_broken} times the cluster did not become whole, or replaced a replica unasked"]
        return "\n".join([*lines, "nothing was lost" if self.is_good else "NOT GOOD"])


def met(record: ChaosRecord, kills: Iterable[Kill]) -> str:
    """Returns the kind of the last kill before the request ended, such as ``engine:kill``. It is ``CALM`` if there was
    none, or if the cluster was whole again before the request began."""
    last = None
    for kill in kills:
        if kill.at_s <= record.ended_s:
            last = kill
    if last is None or (last.whole_s is not None and record.started_s > last.whole_s):
        return CALM
    return f"{last.part}:{last.name}"


def write(folder: Path, run: ChaosRun, tally: ChaosTally, about: dict[str, Any]) -> None:
    """Writes ``verdict.json`` and ``records.jsonl``, one line per request, without any text of answers."""
    folder.mkdir(parents=True, exist_ok=True)
    kills = [asdict(kill) for kill in run.kills]
    content = {"about": about, "is_good": tally.is_good, "tally": vars(tally), "kills": kills}
    (folder / "verdict.json").write_text(json.dumps(content, indent=1) + "\n")
    with (folder / "records.jsonl").open("w") as file:
        for record in run.records:
            outcome, cause = judge(record, run.expected[record.index], run.kills)
            line = {
                "index": record.index,
                "kind": record.kind,
                "at_s": round(record.started_s - run.began_s, 3),
                "took_s": round(record.ended_s - record.started_s, 3),
                "met": met(record, run.kills),
                "outcome": outcome,
                "cause": cause,
            }
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> ChaosTally:
    """The tally of a ``verdict.json``."""
    found = json.loads(path.read_text())["tally"]
    for name in ("by_kill", "by_kind"):
        found[name] = {key: Counter(counts) for key, counts in found[name].items()}
    return ChaosTally(**{**found, "causes": Counter(found["causes"])})


def _heads() -> str:
    return "".join(f"{outcome:>8}" for outcome in OUTCOMES)


def _counts(counts: Counter[str]) -> str:
    return "".join(f"{counts[outcome]:>8}" for outcome in OUTCOMES)


def _middle(times_s: list[float] | None) -> str:
    return f"{sorted(times_s)[len(times_s) // 2]:.1f}" if times_s else "-"
