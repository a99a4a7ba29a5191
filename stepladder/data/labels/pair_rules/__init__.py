"""The rules that choose preference pairs from searched trees, one family a file.

A rule is a frozen dataclass: its ``type`` is its name in a configuration (``labels.pairs``), its fields are its settings with the
published values as defaults, and ``select`` makes pairs. To add one, write such a class next to the others and add it to ``PairRule``;
that line also adds it to the configuration, the refusals, the documentation and the tests that every rule must pass.
"""

from typing import get_args

from stepladder.data.labels.pair_rules.anchored import AnchoredPairs
from stepladder.data.labels.pair_rules.committed import CommittedPairs
from stepladder.data.labels.pair_rules.contrast import ContrastPairs
from stepladder.data.labels.pair_rules.evidence import EvidencePairs
from stepladder.data.labels.pair_rules.solutions import SolutionPairs
from stepladder.data.labels.pair_rules.value_margin import AgentQPairs, ValueMarginPairs
from stepladder.data.labels.rstar_math import RStarPairs

PairRule = EvidencePairs | RStarPairs | CommittedPairs | AgentQPairs | ValueMarginPairs | ContrastPairs | AnchoredPairs | SolutionPairs
"""Any rule."""
PAIR_RULES: dict[str, type[PairRule]] = {rule().type: rule for rule in get_args(PairRule)}
"""The rules by name."""

__all__ = [
    "PAIR_RULES",
    "AgentQPairs",
    "AnchoredPairs",
    "CommittedPairs",
    "ContrastPairs",
    "EvidencePairs",
    "PairRule",
    "RStarPairs",
    "SolutionPairs",
    "ValueMarginPairs",
]
