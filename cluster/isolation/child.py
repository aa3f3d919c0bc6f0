"""The program of the template, which forks on request, and of its children, which prepare one picture at a time.

In: a socket over which the parent asks for children, the niceness, and the processor's settings, as arguments. The
template has imported the preprocess stage and has one thread, so a fork is safe and its child is ready within
milliseconds. Measured (two shared cores of an AMD EPYC, 9 other processes, 2026-11-30): CPU time of a fork → of a start
without a template: 5 ms → 2.5 s.

``multiprocessing`` has such a server too. Its children import the parent's main module, which in a replica is Ray.

The template ends when its parent does, because the socket is closed then. Its children end with the template.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from PIL import Image

from cluster.checkpoint import ProcessorSettings
from cluster.errors import PrismError
from cluster.isolation.budget import too_big
from cluster.isolation.structure import check_structure
from cluster.isolation.wire import SMALLEST, Job, Ready, Reply, receive, receive_socket, send
from cluster.preprocess import preprocess

if TYPE_CHECKING:
    from cluster.messages import Pixels

PR_SET_PDEATHSIG: Final = 1
TRACEBACK_CHARS: Final = 10_000


def main() -> None:
    """Runs the template until its parent closes the socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.nice(int(sys.argv[2]))
    settings = ProcessorSettings.model_validate_json(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C ends the parent, and so this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end need nobody to wait for them
    torch.set_num_threads(1)
    Image.init()  # Pillow imports its decoders now, and not in every child
    preprocess(SMALLEST, settings)
    gc.collect()
    gc.freeze()
    template_pid = os.getpid()
    while True:
        try:
            channel = receive_socket(control)
        except EOFError:
            return
        if os.fork() == 0:
            control.close()
            _end_with(template_pid)
            _be_quiet()
            prepare_pictures(channel, settings)
            os._exit(0)
        channel.close()


def prepare_pictures(channel: socket.socket, settings: ProcessorSettings) -> None:
    """Prepares the pictures that come over a socket, one at a time, until it is closed."""
    faulthandler.enable(channel.fileno(), all_threads=False)  # the parent then knows a crash from a kill
    own_bytes = _data_bytes()
    send(channel, Ready(os.getpid(), time.process_time()))
    while True:
        try:
            job: Job = receive(channel)
        except EOFError:
            return
        resource.setrlimit(resource.RLIMIT_DATA, (own_bytes + job.max_bytes, resource.RLIM_INFINITY))
        result = work(job, settings)
        send(channel, Reply(result, time.process_time()))


def work(job: Job, settings: ProcessorSettings) -> Pixels | PrismError | str:
    """Prepares one picture. Gives its pixels, its refusal, or the traceback of a defect."""
    started_s = time.perf_counter()
    picture = job.picture
    try:
        check_structure(picture)
        pixels = preprocess(picture, settings)
    except PrismError as error:
        return error.with_traceback(None)
    except MemoryError:
        return too_big(picture, job.max_bytes)
    except Exception as error:  # noqa: BLE001 -- the edge of the process
        if "allocate memory" in str(error):  # torch's words
            return too_big(picture, job.max_bytes)
        return traceback.format_exc()[-TRACEBACK_CHARS:]
    return replace(pixels, ran_s=time.perf_counter() - started_s)


def _end_with(template_pid: int) -> None:
    """Has the kernel kill this process when the template ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != template_pid:  # it ended before the call
        os._exit(0)


def _be_quiet() -> None:
    """Sends what C libraries print to nowhere. libtiff prints a line for each broken row of a fax, so that one picture
    of a kilobyte could write megabytes into the replica's log. Tracebacks and faults go over the socket."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    os.close(nowhere)


def _data_bytes() -> int:
    """The bytes that count for RLIMIT_DATA."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
