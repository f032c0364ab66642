"""What can be asked of a network: the table of facts says what the properties do, and the README says the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from networks.dropping import case
from networks.streams import pair_of

import lmccheck
from lmccheck.symmetry.capabilities import MENDS, capabilities

README = Path(__file__).parents[2] / "README.md"
NETWORKS: dict[str, Callable[[], lmccheck.ModelPair]] = {
    "MLP": lambda: case("relu")[0],
    "convolutions, BatchNorm": lambda: case("cnn")[0],
    "residual stream": lambda: case("stream")[0],
    "LayerNorm": lambda: pair_of("layer norm"),
    "GroupNorm": lambda: pair_of("group norm"),
    "transformer": lambda: pair_of("attention"),
    "recurrent": lambda: pair_of("lstm"),
    "experts": lambda: pair_of("experts"),
}
ASKED: dict[str, Callable[[lmccheck.ModelPair], lmccheck.Result]] = {
    "linear_connectivity": lambda pair: lmccheck.linear_connectivity(pair, points=3, profile="dev"),
    "dropout_stability": lambda pair: lmccheck.dropout_stability(pair, profile="dev"),
    "noise_stability": lambda pair: lmccheck.noise_stability(pair, masks=2),
    "noise = 'gaussian'": lambda pair: lmccheck.noise_stability(pair, noise="gaussian", masks=2),
    "ten_segment_path": lambda pair: lmccheck.ten_segment_path(pair, profile="dev"),
    "dropout_path": lambda pair: lmccheck.dropout_path(pair, profile="dev"),
}
QUICK = ("MLP", "residual stream", "LayerNorm")


def said(pair: lmccheck.ModelPair) -> dict[str, str]:
    """Return what the table of facts says of a network."""
    return {name: found.how for name, found in capabilities(pair.network.traced.droppable).items()}


def answered(pair: lmccheck.ModelPair, name: str) -> str:
    """Return how a property says that its value is known, as the table calls it."""
    try:
        known = ASKED[name](pair).details["known"]
    except lmccheck.UnsupportedArchitecture as refused:
        return "refused" if MENDS[name] in str(refused) else str(refused)
    exact = "exact" in known or known == "certified"
    return "inner" if known.startswith("inner") else "certified" if exact else "sampled"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]
)
def test_properties_do_what_the_table_says(name: str) -> None:
    """Asked of a network, each gives a verdict that is known in this way, or refuses with the mend of the table."""
    pair = NETWORKS[name]()
    assert {asked: answered(pair, asked) for asked in ASKED} == said(pair)


def test_the_readme_says_what_the_table_says() -> None:
    """Its rows are computed: networks of which the same can be asked share one."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, build in NETWORKS.items():
        rows.setdefault(tuple(said(build()).values()), []).append(name)
    head = ["", *(f"`{name}`" for name in ASKED)]
    cells = [head, *([", ".join(names), *row] for row, names in rows.items())]
    drawn = ["| " + " | ".join(row).lstrip() + " |" for row in cells]
    drawn.insert(1, "|---" * len(head) + "|")
    assert "\n".join(drawn) in README.read_text(encoding="utf-8"), "\n".join(drawn)


def test_a_refusal_leads_somewhere() -> None:
    """The mend of a path by construction is a trained one, that of units is what needs none."""
    with pytest.raises(lmccheck.UnsupportedArchitecture, match="mend: ask for ten_segment_path"):
        lmccheck.dropout_path(pair_of("attention"))
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=r"read 3 times.*mend: ask for ten_segment_path"):
        lmccheck.dropout_path(pair_of("lstm"))
