"""Ask stability of every network of a zoo: python tests/zoo/stability_run.py torchvision --device cuda --jobs 14.

Each network has a process of its own; the smallest come first. The table says how every answer is known, why there is
none, or that the network did not end within the time or the memory there was. It is printed, and written again after
every network to ``$OUT/zoo.md`` where OUT is set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torchvision_zoo
import transformers_zoo
from stability import QUESTIONS, Answer, answers

ZOOS: dict[str, Any] = {"torchvision": torchvision_zoo, "transformers": transformers_zoo}
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Asked:
    """What is known of one network; ``ended`` says why a question has no answer."""

    name: str
    parameters: int = 0
    answers: list[Answer] = field(default_factory=list)
    ended: str = "waits"
    started: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0  # GB, the largest resident size

    @property
    def sound(self) -> bool:
        """Whether every question has an answer or a refusal with its mend."""
        return len(self.answers) == len(QUESTIONS) and all(a.known or "mend: " in a.refusal for a in self.answers)


def _ask(zoo: str, name: str, device: str, told: Connection) -> None:
    """Send the number of parameters, every answer as it comes, and the largest resident size of this process."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    try:
        module, inputs = ZOOS[zoo].build(name)
        told.send(sum(p.numel() for p in module.parameters()))
        for answer in answers(module, inputs, device=device):
            told.send(answer)
        told.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
    except Exception:
        told.send(traceback.format_exc(limit=-2).strip().replace("\n", " "))


def ask_all(zoo: str, names: list[str], device: str, jobs: int, seconds: float, memory: float) -> list[Asked]:
    """Ask all networks, ``jobs`` at a time, for ``seconds`` together, in ``memory`` GB together."""
    found = [Asked(name) for name in names]
    waiting, running = list(found), dict[Connection, tuple[Asked, BaseProcess]]()
    spawn, end = multiprocessing.get_context("spawn"), time.monotonic() + seconds
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < jobs:
            row = waiting.pop(0)
            here, there = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_ask, args=(zoo, row.name, device, there), daemon=True)
            process.start()
            there.close()
            row.ended, row.started = "did not end in time", time.monotonic()
            running[here] = row, process
        for told in wait(list(running), timeout=0.5):
            assert isinstance(told, Connection)
            if not _heard(told, *running[told]):
                del running[told]
                write(table(found))
        _hold(running, memory)
    for _, process in running.values():
        process.kill()
    write(table(found))
    return found


def _heard(told: Connection, row: Asked, process: BaseProcess) -> bool:
    """Note what a process says; whether it goes on."""
    try:
        said = told.recv()
    except EOFError:
        process.join()
        row.ended = row.ended if process.exitcode != 0 or row.memory == 0 else ""
        return False
    row.seconds = time.monotonic() - row.started
    if isinstance(said, Answer):
        row.answers.append(said)
    elif isinstance(said, int):
        row.parameters = said
    elif isinstance(said, float):
        row.memory = said
    else:
        row.ended = said
    return True


def _hold(running: dict[Connection, tuple[Asked, BaseProcess]], memory: float) -> None:
    """End the largest process while all together need more than there is."""
    sizes = {told: _resident(process) for told, (_, process) in running.items()}
    if sum(sizes.values()) > memory:
        largest = max(sizes, key=lambda told: sizes[told])
        row, process = running[largest]
        row.ended = f"ended at {sizes[largest]:.0f} GB: more memory than there was"
        process.kill()


def _resident(process: BaseProcess) -> float:
    try:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE / 1e9
    except (OSError, IndexError):  # it has just ended
        return 0.0


def table(found: list[Asked]) -> str:
    """Return a Markdown table, a row per network, and a line of totals."""
    lines = ["| network | parameters | " + " | ".join(QUESTIONS) + " | seconds | GB |", "|---" * 7 + "|"]
    for row in found:
        cells = [_cell(row, k) for k in range(len(QUESTIONS))]
        lines.append(
            f"| {row.name} | {row.parameters:,} | {' | '.join(cells)} | {row.seconds:.0f} | {row.memory:.1f} |"
        )
    every = [answer for row in found for answer in row.answers]
    refused = sum(bool(answer.refusal) for answer in every)
    lines += ["", f"{len(found)} networks, {len(QUESTIONS)} questions each: {len(every) - refused} answers, {refused} "
              f"refused, {len(found) * len(QUESTIONS) - len(every)} without answer"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(row: Asked, number: int) -> str:
    if number >= len(row.answers):
        return row.ended.replace("|", "¦")
    answer = row.answers[number]
    told = f"{answer.known}: {answer.value:.4g}" if answer.known else f"REFUSED {answer.refusal}"
    return f"{told}, {answer.seconds:.1f} s".replace("|", "¦")


def write(text: str) -> None:
    """Write the table where OUT says."""
    if out := os.environ.get("OUT"):
        (Path(out) / "zoo.md").write_text(text)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", choices=ZOOS)
    parser.add_argument("names", nargs="*", help="networks, all by default")
    parser.add_argument("--device", default=os.environ.get("LMC_ZOO_DEVICE", "cpu"), help="cpu (default) or cuda[:N]")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all of them together")
    parser.add_argument("--memory", type=float, default=float("inf"), help="GB, for all of them together")
    given = parser.parse_args(arguments)
    names = given.names or ZOOS[given.zoo].by_size()
    print(table(ask_all(given.zoo, names, given.device, given.jobs, given.seconds, given.memory)))


if __name__ == "__main__":
    main()
