"""Names and texts of others as cells and lines of Markdown, where they are shown and nothing more."""

from __future__ import annotations

import re

from lmccheck.errors import one_line

PIPED = ("pipe", "github", "orgtbl", "jira")  # formats in which an unescaped | would open a new cell
MARKDOWN = ("pipe", "github")
ACTIVE = re.compile(
    r"[\\`|*~$]"  # code, cells, emphasis, mathematics
    r"|<(?=[A-Za-z/!?])"  # tags of HTML
    r"|(?<=\])(?=[(:\[])"  # links and images
    r"|(?<!\w)_|_(?!\w)"  # emphasis; within words it is none
)


def escaped(text: str, fmt: str = "github") -> str:
    r"""Return a text on one line such that a format shows it as it is; one that is no Markdown hides at most a pipe.

    >>> escaped("a|b <b>c</b> ![d](e) fc_1"), escaped("a|b", "jira"), escaped("a|b", "simple")
    ('a\\|b \\<b>c\\</b> ![d]\\(e) fc_1', 'a\\|b', 'a|b')
    """
    text = one_line(text)
    if fmt in MARKDOWN:
        return ACTIVE.sub(r"\\\g<0>", text)
    return text.replace("|", "\\|") if fmt in PIPED else text


def code(text: str) -> str:
    """Return a text as a span of code, whose quotes are longer than any run of backticks in it.

    >>> print(code("a"), code("a`b"))
    `a` ``a`b``
    """
    text = one_line(text)
    quote = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{quote}{space}{text}{space}{quote}"
