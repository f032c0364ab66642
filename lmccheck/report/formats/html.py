"""The report as one page of HTML: what was decided, why, and what to type next; no script, no outside request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmccheck.report.formats import FORMATS, Format, Run

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

TEMPLATES = Path(__file__).parents[1] / "html"
GENERATOR = '<meta name="generator" content="lmccheck'


def html(records: list[CheckRecord], run: Run) -> str:
    """Return the page. Raises SourceError where jinja2, of the extra ``html``, is not installed."""
    from lmccheck.data.extras import extra
    from lmccheck.explain import number
    from lmccheck.report.page import page_of

    jinja2 = extra("jinja2", "html", "--lmc-report-html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # names of files, layers and classes are other people's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return str(environment.get_template("page.html").render(page=page_of(records, run)))


FORMATS.add(
    "html",
    Format(
        "html",
        "HTML report",
        'write the report as one page of HTML, with plots (needs pip install "lmccheck[html]")',
        html,
        last=True,
        known=lambda head: GENERATOR.encode() in head,
        needs=("jinja2", "html"),
    ),
    __name__,
)
