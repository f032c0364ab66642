"""The short lines under a table: what a verdict proves and what each check had to remark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lmccheck.report.formats import Run
from lmccheck.report.record import NOT_MEASURED, CheckRecord, names_of, ordered

MEANING = {
    "pass": "pass: the limit holds on the given evaluation data; other data may differ",
    "pass of new data": 'pass with decide = "population": the limit holds for new data, at the confidence that it has',
    "fail": "fail: the limit is exceeded on the given evaluation data; nothing better was found within the budget",
    "fail early": "fail that was settled early: the limit is exceeded, as surely as each says; values are estimates",
    "fail of new data": 'fail with decide = "population": new data exceed the limit, at the confidence that it has',
    "exact": "fail of what is compared, not measured: it differs by more than the limit, whatever the data",
    "baseline": "fail or error beside the baseline: worse than before, or nothing to compare with; the limit holds",
    "inconclusive": "inconclusive: not decided; the text of each says what would decide it",
    "error": "error: nothing could be measured",
    NOT_MEASURED: "not measured: selected, and left without a verdict; the exit status is never 0",
}

FAMILY = 2  # checks of populations, from which on their errors are added up
ENDED = {  # of each verdict but pass: of one check, and of several
    "fail": ("failed", "failed"),
    "error": ("ended in an error", "ended in an error"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
    NOT_MEASURED: ("was not measured", "were not measured"),
}


def decided(records: list[CheckRecord], run: Run) -> str:
    """Return what was decided of records, in one line."""
    if not run.finished:
        return "This run has not finished"
    total, wrong = len(records), Counter(record.verdict for record in records if record.verdict != "pass")
    if not total:
        return "Nothing was measured" if run.errors else "No check ran"
    if not wrong:
        return "The check passed" if total == 1 else f"All {total} checks passed"
    if len(wrong) > 1:
        return f"{sum(wrong.values())} of {total} checks did not pass"
    ((verdict, count),) = wrong.items()
    one, several = ENDED.get(verdict, (verdict, verdict))
    return f"The check {one}" if total == 1 else f"{count} of {total} checks {one if count == 1 else several}"


def notes(records: list[CheckRecord], among: list[CheckRecord] | None = None) -> list[str]:
    """Return what each verdict that occurs means, the barrier's definition, and each remark with its checks.

    ``among``: all records, where these are some of them.
    """
    lines = meanings(records, among)
    named = names_of(records)
    remarks: dict[str, list[str]] = {}
    for record in ordered(records):
        for remark in record.notes:
            remarks.setdefault(remark, []).append("::".join(filter(None, (named(record), record.check))))
    for remark, names in remarks.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"{', '.join(names[:2])}{more}: {remark}")
    return lines


def _meant(record: CheckRecord) -> str:
    """Return the key of what a record's verdict means."""
    if record.baseline.get("decides"):
        return "baseline"
    if _of_population(record) and record.verdict in ("pass", "fail"):
        return f"{record.verdict} of new data"
    if record.verdict == "fail" and "early" in record.details:
        return "fail early"
    return "exact" if record.verdict == "fail" and not record.of_losses else record.verdict


def meanings(records: list[CheckRecord], among: list[CheckRecord] | None = None) -> list[str]:
    """Return what each verdict that occurs means, what all of them together come to, and what a barrier is."""
    verdicts = {_meant(record) for record in records}
    lines = [meaning for verdict, meaning in MEANING.items() if verdict in verdicts]
    definitions = dict.fromkeys(record.barrier_definition for record in records)
    together = together_of(records if among is None else among)
    return [
        *lines,
        *([str(together["says"])] if together else []),
        *(f"barrier: {definition}" for definition in definitions if definition),
    ]


def _of_population(record: CheckRecord) -> bool:
    population = record.details.get("population")
    return isinstance(population, Mapping) and population.get("decides") is True


def together_of(records: list[CheckRecord]) -> dict[str, Any] | None:
    """Return what several checks of populations come to together, None of fewer than two; JSON-able.

    The expected number of wrong verdicts is at most the sum of 1 − confidence, however the checks depend on one
    another; with 1 − α/N each, all N are right with probability 1 − α at least (Bonferroni).
    """
    errors = [1 - float(record.details["population"]["confidence"]) for record in records if _of_population(record)]
    count, wrong = len(errors), sum(errors)
    if count < FAMILY:
        return None
    each = 1 - wrong / count**2
    return {
        "checks": count,
        "wrong_at_most": wrong,
        "confidence_of_each": each,
        "says": f'{count} checks with decide = "population": about {wrong:.2g} wrong verdicts among them are to be '
        f"expected at most, by chance; confidence = {each:.6g} in each makes any at all as unlikely as one is now",
    }


def missing(records: list[CheckRecord]) -> str:
    """Return how many checks were selected and not measured, for the top of a report; empty where all were."""
    checks = [record for record in records if record.pair] or records
    count = sum(record.verdict == NOT_MEASURED for record in checks)
    return f"{count} of {len(checks)} checks not measured" if count else ""


def unreported(records: list[CheckRecord]) -> list[str]:
    """Return the texts of what did not pass, for a run in which nothing fails and pytest itself shows none of them."""
    return [f"{record.id}\n{record.text}" for record in ordered(records) if record.text and not record.blocking]
