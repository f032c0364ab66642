"""Heads that are tied to an embedding are written apart where that changes nothing, and refused where it would."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Written
from networks.language import tied_language_model
from torch import nn

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.modules.untie import heads_apart, tied_heads

TOKENS = (torch.arange(12).reshape(2, 6) % 7,)


def test_a_head_becomes_a_tensor_of_its_own():
    """The copy computes what the module computes, the head no longer moves with the embedding, the module is left."""
    torch.manual_seed(0)
    module = tied_language_model()
    apart, heads = heads_apart(module, TOKENS)
    assert heads == {"head.weight": "embed.weight"}
    assert tied_heads(module) == heads
    assert tied_heads(apart) == {}
    state = {**module.state_dict(), "head.weight": module.embed.weight.detach().clone()}
    apart.load_state_dict(state)
    assert torch.equal(apart.eval()(*TOKENS), module.eval()(*TOKENS))
    apart.load_state_dict({**state, "head.weight": 2 * state["head.weight"]})
    assert torch.allclose(apart(*TOKENS), 2 * module(*TOKENS), atol=1e-6)


def test_a_head_that_is_no_tensor_of_its_own_is_refused():
    """A network without a tied head, and one whose forward reads the embedding's own tensor, each with a mend."""
    torch.manual_seed(0)
    untied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    with pytest.raises(UnsupportedArchitecture, match=r"has no head that is one tensor .* leave untie out"):
        heads_apart(untied, TOKENS)
    reads = Written(lambda s, x: F.linear(s.embed(x), s.embed.weight), embed=nn.Embedding(7, 4), head=nn.Linear(4, 7))
    reads.head.weight = reads.embed.weight
    with pytest.raises(UnsupportedArchitecture, match=r"does not read 'head\.weight' as a tensor"):
        heads_apart(reads, TOKENS)


def test_a_network_that_untied_computes_something_else_is_refused():
    """One that scales by what it takes for tied, as T5 does, is no other writing of the same function."""

    class Scaled(nn.Module):
        def __init__(self, tied=True):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.scale = 0.5 if tied else 1.0
            if tied:
                self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.scale * self.embed(tokens))

    torch.manual_seed(0)
    with pytest.raises(UnsupportedArchitecture, match=r"computes something else once head\.weight"):
        heads_apart(Scaled(), TOKENS, lambda: Scaled(tied=False))
