"""Sends what the OpenAPI document of a running Prism allows and what it does not, and judges every answer by it.

    python -m tests.fuzz.surface http://127.0.0.1:8000 --num 300 --seed 0

``num`` is the number of requests for each operation and mode. A request that would ask for many
tokens asks for a few.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

if TYPE_CHECKING:
    from schemathesis import Case

CHECK_NAMES: Final = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
)
HANG_S: Final = 60.0
MAX_TOKENS: Final = 4
MAX_OPERATOR_REQUESTS: Final = 5
"""``/status``, ``/metrics`` and ``/health`` run at most twice a second, so they get few requests."""
INTERNAL_ERROR: Final = 500
NOT_OURS: Final = {502, 504}
"""Servers of pictures that cannot be reached, and times that the request itself sets."""


@dataclass
class SurfaceFindings:
    """The answers of a run by operation and status, and the faults, each once."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    slowest_s: float = 0.0


def fuzz_surface(url: str, *, num: int, number: int) -> SurfaceFindings:
    """Fuzzes every operation of the document that a server gives.

    Args:
        url: The address of a running Prism.
        num: Requests for each operation that takes a body, and for each mode: valid and invalid.
        number: The seed.
    """
    load_all_checks()
    document = requests.get(f"{url}/openapi.json", timeout=HANG_S).json()
    findings = SurfaceFindings()
    with requests.Session() as session:
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = cast(Any, found).ok()
            takes_body = operation.method.upper() == "POST"
            for mode in (
                (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if takes_body else (GenerationMode.POSITIVE,)
            ):

                @seed(number)
                @settings(
                    max_examples=num if takes_body else min(num, MAX_OPERATOR_REQUESTS),
                    phases=[Phase.generate],
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(operation.as_strategy(generation_mode=mode))
                def send(case: Case[Any]) -> None:
                    _send(case, url, session, findings)

                send()
    return findings


def _send(case: Case[Any], url: str, session: requests.Session, findings: SurfaceFindings) -> None:
    name = f"{case.operation.method.upper()} {case.operation.path}"
    case.body = _short(case.body)
    started_s = time.monotonic()
    try:
        response = case.call(base_url=url, session=session, timeout=HANG_S)
    except requests.RequestException as error:
        findings.faults.setdefault(f"{name}: {type(error).__name__}", _told(case))
        return
    findings.slowest_s = max(findings.slowest_s, time.monotonic() - started_s)
    findings.answers[f"{name} {response.status_code}"] += 1
    if response.status_code >= INTERNAL_ERROR and response.status_code not in NOT_OURS:
        findings.faults.setdefault(f"{name}: {response.status_code}", f"{response.text[:300]} {_told(case)}")
    try:
        case.validate_response(response, checks=cast(Any, CHECKS.get_by_names(list(CHECK_NAMES))))
    except schemathesis.errors.FailureGroup as group:
        for failure in group.exceptions:
            fault = f"{name}: {response.status_code} {type(failure).__name__} {str(failure)[:300]}"
            findings.faults.setdefault(fault, f"{response.text[:300]} {_told(case)}")


def _short(body: Any) -> Any:
    """The body with few tokens to generate. Values that are no whole numbers stay as they are."""
    if not isinstance(body, dict):
        return body
    if not body.get("stream"):
        body = {name: value for name, value in body.items() if name != "stream_options"}
    limits = {"max_tokens": MAX_TOKENS, "max_completion_tokens": MAX_TOKENS, "n": 2}
    short = {
        name: min(value, limits[name]) if name in limits and type(value) is int else value
        for name, value in body.items()
    }
    return {"max_tokens": MAX_TOKENS, **short} if {"messages", "prompt"} & short.keys() else short


def _told(case: Case[Any]) -> str:
    return repr(case.body)[:500]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = fuzz_surface(options.url, num=options.num, number=options.seed)
    summary = {"answers": dict(sorted(found.answers.items())), "slowest_s": round(found.slowest_s, 2)}
    sys.stdout.write(json.dumps({**summary, "faults": found.faults}, indent=1) + "\n")
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    main()
