"""What carries a failure: the share of it that goes with each group of units, and the classes of the worst samples."""

from __future__ import annotations

from lmccheck.report.plots.bars import Chart, drawn
from lmccheck.report.plots.drawing import Drawing
from lmccheck.report.record import CheckRecord


def groups(record: CheckRecord, name: str) -> Drawing | None:
    """Return the drawing of what each group of units, or layer, carries; None where that was not asked."""
    found = record.explanation.get("groups") or []
    if not found:
        return None
    kind = "layer" if all(group["kind"] == "layer" for group in found) else "group"
    few = record.explanation.get("minimal_layers") or record.explanation.get("breaking_layers") or []
    enough = f" These layers alone are enough to break the limit: {', '.join(few)}." if few else ""
    says = (
        f"By {kind}: the share of the value that goes when it alone is put back, and the share that is there when it "
        f"alone is moved.{enough} {record.explanation.get('budget') or ''}".rstrip()
    )
    back, alone = ([group[key] for group in found] for key in ("share", "alone"))
    names, title = [group["name"] for group in found], f"What carries it, by {kind}"
    beside = {"put back alone": alone}
    return drawn(Chart(title, says, names, {"put back alone": back}, kind, beside, "moved alone", say=percent), name)


def classes(record: CheckRecord, name: str) -> Drawing | None:
    """Return the drawing of the classes of those samples that carry half of it; None where there are not several."""
    samples = record.explanation.get("samples") or {}
    found = samples.get("classes") or {}
    if len(found) < 2:
        return None
    says = f"{samples['half']} of {samples['of']} samples carry half of the value; their classes."
    title = f"The {samples['half']} of {samples['of']} samples that carry half of it, by class"
    counts: dict[str, list[float | None]] = {"samples": [float(count) for count in found.values()]}
    return drawn(Chart(title, says, [f"class {each}" for each in found], counts, "class"), name)


def percent(share: float | None) -> str:
    """Return a share in percent.

    >>> percent(0.625), percent(None)
    ('62 %', '')
    """
    return "" if share is None else f"{100 * share:.0f} %"
