"""Collects what was measured, and writes it down: ``results.json``, ``results.md`` and the plots."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadtest.bench import plots
from loadtest.bench.bars import BARS, BarResult, judge, short, spread
from loadtest.bench.systems import versions
from loadtest.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.bench.bars import Results
    from loadtest.bench.load import Sample
    from loadtest.bench.workloads import Scenario

LATENCY_PANELS: Final[tuple[str, ...]] = ("text", "picture_new", "picture_seen", "windows")


@dataclass
class Record:
    """All repeats of all workloads so far.

    Args:
        about: The machine, versions, date and command.
    """

    about: dict[str, Any]
    figures: Results = field(default_factory=dict)
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    ttft_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    gaps_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, workload: Scenario, system: str, phases: Mapping[str, Sequence[Sample]]) -> None:
        """Takes one repeat's samples; figures are those of whole answers, and failures are counted beside them."""
        whole = {name: [sample for sample in samples if not sample.failure] for name, samples in phases.items()}
        for samples in phases.values():
            for sample in samples:
                if sample.failure:
                    self.failures.setdefault(f"{workload.name}, {system}", Counter())[sample.failure] += 1
        if not all(whole.values()):
            self.notes.append(f"{workload.name}, {system}: no whole answer in a phase, so this repeat has no figures")
            return
        rows = self.figures.setdefault(workload.name, {}).setdefault(system, {})
        for name, value in workload.figures(whole).items():
            rows.setdefault(name, []).append(value)
        times_ms = self.ttft_ms.setdefault(workload.name, {}).setdefault(system, [])
        times_ms += [sample.ttft_s * 1000 for samples in whole.values() for sample in samples]
        if workload.name == "bursts":
            phase_gaps = self.gaps_ms.setdefault(system, defaultdict(list))
            for name, samples in whole.items():
                phase_gaps[name] += [
                    gap_s * 1000 for sample in samples if sample.kind == "text" for gap_s in sample.gaps_s
                ]

    def write(self, folder: Path, workloads: Sequence[Scenario]) -> None:
        """Writes everything anew."""
        folder.mkdir(parents=True, exist_ok=True)
        verdicts = [judge(bar, self.figures) for bar in BARS]
        content = {
            "about": self.about,
            "notes": self.notes,
            "failures": self.failures,
            "figures": self.figures,
            "bars": [asdict(verdict) | {"text": verdict.bar.text} for verdict in verdicts],
        }
        (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        (folder / "results.md").write_text(self.markdown(workloads, verdicts))
        titles = {workload.name: workload.title for workload in workloads}
        latency = {name: self.ttft_ms[name] for name in LATENCY_PANELS if name in self.ttft_ms}
        if latency:
            plots.draw_ttft(latency, titles, folder / "ttft.png")
        if self.gaps_ms:
            plots.draw_gaps(self.gaps_ms, folder / "gaps.png")
        rated = {
            name: systems
            for name, systems in self.figures.items()
            if all("requests/s" in figures for figures in systems.values()) and len(systems) > 1
        }
        if rated:
            plots.draw_rates(rated, titles, folder / "rates.png")

    def markdown(self, workloads: Sequence[Scenario], verdicts: Sequence[BarResult]) -> str:
        """The report as Markdown."""
        lines = ["# Prism beside its peers", ""]
        lines += [f"- {name}: {value}" for name, value in self.about.items()]
        lines += ["", "Medians over the repeats, with their range.", "", "## Bars", ""]
        lines += ["| # | bar | measured | |", "|---|---|---|---|"]
        for verdict in verdicts:
            value = "–" if verdict.value is None else short(verdict.value)
            said = {True: "holds", False: "**missed**", None: "not measured"}[verdict.holds]
            lines.append(f"| {verdict.bar.number} | {verdict.bar.text} | {value} | {said} |")
        for workload in workloads:
            systems = self.figures.get(workload.name)
            if systems:
                lines += ["", f"## {workload.name}: {workload.title}", "", *table(systems)]
        if self.failures or self.notes:
            lines += ["", "## Failures and notes", ""]
            lines += [
                f"- {where}: {count} × {cause}"
                for where, causes in self.failures.items()
                for cause, count in causes.items()
            ]
            lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


def table(systems: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """One row per figure, one column per system."""
    names = list(dict.fromkeys(name for figures in systems.values() for name in figures))
    lines = [f"| | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    for name in names:
        cells = (spread(figures[name]) if name in figures else "–" for figures in systems.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def about(repeats: int, *, quick: bool, client_first: bool) -> dict[str, Any]:
    """The machine, the versions, the date and the command."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m loadtest.bench " + " ".join(sys.argv[1:]),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores of {cpu}, Linux {platform.release()}",
        **versions(),
        "repeats": f"{repeats}{', quick' if quick else ''}; systems in alternation, each started anew",
        "the same for all": (
            "checkpoint, float32, max_model_len 4096, max_num_seqs 64, 1 GiB of KV cache per engine, eager, "
            "one thread per engine, bytes of every request, one client process on the same cores"
        ),
        "as each has it": (
            "Prism reads prompts in chunks of 64 tokens, as its application file says, except in `windows`; the others read "
            "them whole, as vLLM does by default (its flag for it is `--long-prefill-token-threshold`)"
        ),
        "client": "scheduled before everything else"
        if client_first
        else "scheduled as everything else: it may be late",
        "bound": (
            "two engines to cores 0 and 1; in `bursts` and `geometry` the engine to core 1 and Prism's encoder to core 0; "
            "else each system is left to itself; Ray's workers run at niceness 0, and what computes in Prism as it does by "
            "itself (`cluster/priority.py`): engines at 15 and pictures at 0; in `bursts` and `geometry`, where the engine's "
            "core is reserved for it (`bind_cores`), the engine at 0 and pictures at 5"
        ),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
