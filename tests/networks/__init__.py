"""All networks of the tests: small ones of every family the analysis must treat soundly, beside their groups."""

from networks import families, mutants, rules, uncommon  # registers them
from networks.families import Attention, LanguageModel, RMSNorm
from networks.registry import ALL, NETWORKS, Case, Network, network
from networks.written import Written, param, residual

__all__ = [
    "ALL",
    "NETWORKS",
    "Attention",
    "Case",
    "LanguageModel",
    "Network",
    "RMSNorm",
    "Written",
    "families",
    "mutants",
    "network",
    "param",
    "residual",
    "rules",
    "uncommon",
]
