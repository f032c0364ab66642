"""A copy of this process as it is now, which computes something later and knows nothing of what is run meanwhile."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from lmccheck.data.imports import say
from lmccheck.errors import LmcError

LENGTH = 8  # bytes in which the length of an answer is told


class Forked:
    """A process that is made when the context is entered, and computes on the CPU, silently, when it is asked.

    There is none where the system makes none such: elsewhere than on Linux and its like. Raises OSError where it cannot
    be made.
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._process = self._begin = self._answer = -1

    def __enter__(self) -> Forked:
        if sys.platform in ("win32", "darwin"):  # where threads of libraries forbid it
            return self
        waits, self._begin = os.pipe()
        self._answer, tells = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a test may have put anything there
                stream.flush()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other threads, which this one does not wait for
                self._process = os.fork()
        except OSError:  # of memory or processes, say
            for end in (waits, self._begin, self._answer, tells):
                os.close(end)
            raise
        if not self._process:
            self._live(waits, tells)
        with suppress(OSError):
            os.setpgid(self._process, self._process)  # both do: whoever comes first
        os.close(waits)
        os.close(tells)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process < 0:
            return
        os.close(self._begin)
        os.close(self._answer)
        with suppress(OSError):
            os.killpg(self._process, signal.SIGKILL)  # and what it has started
        with suppress(OSError):
            os.waitpid(self._process, 0)
        self._process = -1

    @property
    def there(self) -> bool:
        """Whether there is such a process."""
        return self._process > 0

    def ask(self, seconds: float) -> Any:
        """Return what it computes. Raises LmcError where that raises, or is not there after so many seconds."""
        with suppress(BrokenPipeError):  # it is gone, which reading says
            os.write(self._begin, b".")
        end = time.monotonic() + seconds
        length = int.from_bytes(self._read(LENGTH, end, seconds))  # others may hold its end of the pipe open
        computed, found = pickle.loads(self._read(length, end, seconds))
        if not computed:
            raise LmcError(f"a process of its own raised {found}")
        return found

    def _read(self, length: int, end: float, seconds: float) -> bytes:
        parts = list[bytes]()
        while length:
            if not select.select([self._answer], [], [], max(0.0, end - time.monotonic()))[0]:
                raise LmcError(f"a process of its own did not end in {seconds:.0f} s")
            if not (part := os.read(self._answer, min(length, 2**20))):
                raise LmcError("a process of its own ended early")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _live(self, waits: int, tells: int) -> None:
        """Wait, compute, tell and end: nothing of what the process was made from is gone on with."""
        try:
            os.setpgid(0, 0)
            os.close(self._begin)
            os.close(self._answer)
            if os.read(waits, 1):
                faulthandler.disable()  # what ends this process is said by who asked
                nothing = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(nothing, stream)
                sys.stdout = sys.stderr = os.fdopen(nothing, "w")  # what a test put there may write elsewhere
                torch.set_num_threads(1)  # those of the process that it was made from are not here
                with os.fdopen(tells, "wb") as told:
                    text = self._told()
                    told.write(len(text).to_bytes(LENGTH) + text)
        finally:
            os._exit(0)

    def _told(self) -> bytes:
        try:
            return pickle.dumps((True, self._compute()))
        except LmcError as error:
            return pickle.dumps((False, str(error)))
        except BaseException as error:  # a message for whoever asks
            return pickle.dumps((False, say(error)))
