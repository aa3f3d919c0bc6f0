"""The ``prism`` command: it starts, checks, asks, shows and plans a cluster, and writes loads to try one with.

The exit code is 0 if all went well, 1 if the server refused or failed, 2 if the command line is wrong, and 3 if the
server cannot be reached or is not ready.
"""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.table import Table

from cluster.access.keys import KeysError
from cluster.access.keys_file import KeysFile
from deployments.local import torchvision_cure
from deployments.local.key import VARIABLE, key, key_header
from deployments.local.measure import measure
from deployments.local.plan import plan
from deployments.local.schedule import schedule
from deployments.local.simulate import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deployments.local.app_file import ApplicationFile

REFUSED, UNREACHABLE = 1, 3
DEFAULT_URL = "http://127.0.0.1:8000"
DEPLOYMENTS = Path(__file__).parents[1]
SAMPLE = DEPLOYMENTS.parent / "cluster" / "demo" / "samples" / "shape.png"
SHIPPED = ("app", "qwen2_5_vl_32b")
"""The application files in ``deployments``, by their names without ``.yaml``."""

app = typer.Typer(help="Prism serves vision-language models on Ray.", no_args_is_help=True, add_completion=False)
app.command()(schedule)
app.command()(plan)
app.command()(simulate)
app.command()(measure)
app.command()(key)
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

File = Annotated[str, typer.Argument(help=f"An application file, or one that Prism ships: {', '.join(SHIPPED)}.")]
Url = Annotated[str, typer.Option(help="Where Prism listens.", envvar="PRISM_URL")]


@app.command()
def ask(
    words: Annotated[
        list[str],
        typer.Argument(help="Pictures (files or https: URLs), then the question.", metavar="[PICTURE]... QUESTION"),
    ],
    url: Url = DEFAULT_URL,
    max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 gives the likeliest answer.", min=0)] = 0.0,
) -> None:
    """Asks a question about any number of pictures and streams the answer."""
    *pictures, question = words
    if not question.strip():
        _fail("The last word must be the question; it is empty.", code=2)
    if _is_file(question):
        _fail(f"The last word must be the question, but {question} is a file.", code=2)
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _picture_url(picture)}} for picture in pictures
    ]
    content = [*parts, {"type": "text", "text": question}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
    }
    for text in _stream(url, body):
        out.print(text, end="", markup=False)
        sys.stdout.flush()
    out.print()


@app.command()
def status(url: Url = DEFAULT_URL) -> None:
    """Shows every pool, its replicas, and whether all can serve."""
    with _client(url) as client:
        pools = _checked(client.get("/status")).json()
        health = client.get("/health")
    table = Table("pool", "state", "replicas", "note", title=f"{pools['model']} at {url}" if out.is_terminal else None)
    for name, pool in pools["pools"].items():
        replicas = ", ".join(f"{count} {state.lower()}" for state, count in sorted(pool["replicas"].items()))
        note = pool["message"] or _scaling_note(pool["scaling"])
        table.add_row(name, pool["status"].lower(), replicas or "none", note)
    if out.is_terminal:
        out.print(table)
    else:
        columns = [list(column.cells) for column in table.columns]
        for row in zip(*columns, strict=True):
            print(*row, sep="\t")  # noqa: T201 -- plain when piped
    if health.status_code != httpx.codes.OK:
        _fail(f"not ready: {_error(health)}", code=UNREACHABLE)
    err.print("ready", style="green")


def _scaling_note(decision: Mapping[str, Any] | None) -> str:
    """The last decision on the size of a pool, in words."""
    if decision is None:
        return ""
    wanted = "" if decision["wanted"] is None else f"wants {decision['wanted']}, "
    return f"{wanted}target {decision['target']}: {decision['reason']}{'' if decision['acts'] else ' (advice only)'}"


@app.command()
def serve(
    file: File = "app.yaml",
    port: Annotated[int, typer.Option(help="Where to listen on loopback.", min=1, max=65535)] = 8000,
) -> None:
    """Starts a cluster of this machine alone on loopback, until Ctrl-C."""
    path = _application_file(file)
    try:
        torchvision_cure.install()
    except torchvision_cure.CureNotWritableError as error:
        _fail(str(error))

    from deployments.local.launch import running, wait_forever

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts us in the background makes us ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    application = _read(path)
    _check_keys(application.keys_file)
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            with out.status("Starting Ray …") as spinner:
                progress = _Progress(spinner, started)
                cluster = stack.enter_context(running(application, port=port, progress=progress))
            _print_ready(cluster.url, cluster.logs, time.monotonic() - started)
            stack.callback(out.print, "\nEnding; this takes some seconds …")
            wait_forever()
    except KeyboardInterrupt:
        out.print("\nAll processes have ended.")
    except RuntimeError as error:
        _fail(str(error))


@app.command()
def check(file: File = "app.yaml") -> None:
    """Says what is wrong with an application file. It needs no cluster."""
    path = _application_file(file)
    application = _read(path)
    from deployments.app import resources_of

    resources = resources_of(application.config, application.num_replicas())
    needed = " and ".join(f"{amount:g} {name}s" for name, amount in resources.items())
    out.print(f"{path} is right. Its pools reserve {needed}.", markup=False)


def _read(path: Path) -> ApplicationFile:
    from deployments.local.app_file import ApplicationFile, ApplicationFileError

    try:
        return ApplicationFile.read(path)
    except ApplicationFileError as error:
        _fail("\n".join(f"{path}: {problem}" for problem in error.problems), code=2)


def _check_keys(path: str | None) -> None:
    """Ends the command if a file of keys cannot be used. The Router would say so in its log only."""
    try:
        if path is not None:
            KeysFile(Path(path)).read_if_changed()
    except KeysError as error:
        _fail(f"{path}, the keys_file of the Router: {error}", code=2)


def _application_file(name: str) -> Path:
    """The application file of this path or, where there is none, the one that ships under this name."""
    if _is_file(name):
        return Path(name)
    shipped = name.removesuffix(".yaml")
    if shipped not in SHIPPED:
        _fail(f"There is no application file {name}; Prism ships {' and '.join(SHIPPED)}.", code=2)
    return DEPLOYMENTS / f"{shipped}.yaml"


class _Progress:
    """Says what is still starting: a spinner on a terminal, one line per change elsewhere."""

    def __init__(self, spinner: Any, started: float) -> None:
        self._spinner = spinner
        self._started = started
        self._said = ""

    def __call__(self, text: str) -> None:
        elapsed = f"{time.monotonic() - self._started:.0f} s"
        if out.is_terminal:
            self._spinner.update(f"{text} ({elapsed})")
        elif text != self._said:
            out.print(f"[{elapsed}] {text}", markup=False)
            self._said = text


def _print_ready(url: str, logs: Path, elapsed_s: float) -> None:
    where = "" if url == DEFAULT_URL else f" --url {url}"
    out.print(
        f"Prism is ready at {url} after {elapsed_s:.0f} s. Ctrl-C ends it; logs are in {logs}", style="bold green"
    )
    out.print(f'Try:  {_program()} ask{where} {_from_here(SAMPLE)} "What colour is the shape?"', markup=False)


def _program() -> str:
    """The ``prism`` of this environment as a shell in this folder would start it."""
    program = Path(sys.executable).with_name("prism")
    found = shutil.which("prism")
    return "prism" if found and Path(found).absolute() == program else _from_here(program)


def _from_here(path: Path) -> str:
    """A path as a shell takes it, relative where it is below the current folder."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def _picture_url(picture: str) -> str:
    if picture.startswith(("https://", "data:")):
        return picture
    path = Path(picture)
    if not _is_file(picture):
        kind = "A picture is a file or an https: URL" if "://" in picture else "There is no picture"
        _fail(f"{kind}: {picture}", code=2)
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # too long to be a file's name
        return False


def _stream(url: str, body: dict[str, Any]) -> Iterator[str]:
    """The texts of one streamed answer, in order. An error ends the command, even in the middle of a stream."""
    with _client(url) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
        for line in _checked(response).iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                _fail(event["error"]["message"])
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


@contextlib.contextmanager
def _client(url: str) -> Iterator[httpx.Client]:
    try:
        with httpx.Client(base_url=url, timeout=httpx.Timeout(600, connect=5), headers=key_header()) as client:
            yield client
    except httpx.ConnectError:
        _fail(
            f"Nothing answers at {url}. Start Prism (prism serve), or say where it listens (--url, or PRISM_URL).",
            code=UNREACHABLE,
        )
    except httpx.UnsupportedProtocol:
        _fail(f"--url must be like {DEFAULT_URL}, not {url}.", code=2)
    except httpx.HTTPError as error:
        _fail(f"The connection to {url} broke: {error}", code=UNREACHABLE)


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        _fail(_error(response))
    return response


def _error(response: httpx.Response) -> str:
    hint = f" (This command sends the key in {VARIABLE}.)" if response.status_code == httpx.codes.UNAUTHORIZED else ""
    try:
        return str(response.json()["error"]["message"]) + hint
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _fail(message: str, *, code: int = REFUSED) -> NoReturn:
    err.print(message, style="red", markup=False)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
