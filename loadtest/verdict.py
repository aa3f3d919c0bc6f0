"""Holds the records of a run against service level objectives.

    python -m loadtest.verdict run.jsonl --slo slo.yaml --html report.html

Locust's ``--record`` writes the records, and ``slo`` shows a file of objectives.

Exit codes: 0 every objective is met; 1 one is not; 2 the run is void, or a file or the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loadtest.fields import BadFields
from loadtest.judgement import VOID, judge
from loadtest.records import read_run
from loadtest.slo import read_slo
from loadtest.verdict_page import write_page


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.verdict", description="Holds a run against service level objectives."
    )
    parser.add_argument("run", type=Path, help="the file that Locust's --record wrote")
    parser.add_argument("--slo", type=Path, required=True, help="the objectives, in YAML")
    parser.add_argument("--html", type=Path, help="write a report with plots into this file")
    options = parser.parse_args(words)
    try:
        run, slo = read_run(options.run), read_slo(options.slo)
    except (BadFields, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return VOID
    verdict = judge(run, slo)
    sys.stdout.write(verdict.text() + "\n")
    if options.html:
        write_page(options.html, run, slo, verdict)
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
