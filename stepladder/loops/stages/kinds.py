"""The kinds of rows that a round writes: the folder and stored form of each, and the model that learns from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Generic

from stepladder.data import store
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.store import RecordT, ShardKind, count_rows, read_records, write_records
from stepladder.loops.config.run import Config
from stepladder.loops.config.training import RolloutTarget
from stepladder.types import AdvantageRow, GradedRow, PreferencePair, SoftTarget, Trace, TreeRecord, ValueRow


class Learner(StrEnum):
    """A model that a round trains."""

    POLICY = "policy"
    """The policy."""
    PRM = "prm"
    """The process reward model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowKind(Generic[RecordT]):
    """A kind of rows of a round."""

    name: str
    """Folder of its shards within a round or an imported data set, and its name among the label counts."""
    stored: ShardKind[RecordT]
    """Record type and Parquet schema."""
    learner: Learner | None
    """Who learns from it; None for trees, from which other rows are made."""

    def read(self, shards: Iterable[Path]) -> list[RecordT]:
        """Read shards of this kind, one after the other; errors as for ``stepladder.data.store.read_table``."""
        return [row for path in shards for row in read_records(path, self.stored)]

    def write(self, path: Path, rows: Sequence[RecordT]) -> None:
        """Write one shard of this kind; errors as for ``stepladder.data.store.write_table``."""
        write_records(path, rows, self.stored)


TREES: RowKind[TreeRecord] = RowKind(name="trees", stored=store.TREES, learner=None)
"""Searched trees of the training problems."""
ROLLOUTS: RowKind[TreeRecord] = RowKind(name="rollouts", stored=store.TREES, learner=None)
"""Full solutions that the policy sampled for the PRM to learn from: the round's new one, or with ``prm.when`` the one that searches."""
TRACES: RowKind[Trace] = RowKind(name="traces", stored=store.TRACES, learner=Learner.POLICY)
"""Right solutions, and revisions of wrong ones."""
SOFT_TARGETS: RowKind[SoftTarget] = RowKind(name="soft-targets", stored=store.SOFT_TARGETS, learner=Learner.POLICY)
"""Steps with their shares of the search's distribution."""
PAIRS: RowKind[PreferencePair] = RowKind(name="pairs", stored=store.PAIRS, learner=Learner.POLICY)
"""Two continuations of one prefix, one of them preferred."""
REFINED: RowKind[PreferencePair] = RowKind(name="refined", stored=store.PAIRS, learner=Learner.POLICY)
"""Failed solutions and refinements that mend them."""
REFINEMENTS: RowKind[Trace] = RowKind(name="refinements", stored=store.TRACES, learner=Learner.PRM)
"""The same refinements after the prompts that asked for them, for the judge that wrote them."""
GRADED: RowKind[GradedRow] = RowKind(name="graded", stored=store.GRADED, learner=Learner.POLICY)
"""Good and bad continuations, for losses that take no pairs."""
ADVANTAGES: RowKind[AdvantageRow] = RowKind(name="advantages", stored=store.ADVANTAGES, learner=Learner.POLICY)
"""Solutions or steps with an advantage for every token, for policy gradients."""
VALUES: RowKind[ValueRow] = RowKind(name="values", stored=store.VALUES, learner=Learner.PRM)
"""Value targets from the trees."""
STEP_PAIRS: RowKind[PreferencePair] = RowKind(name="step-pairs", stored=store.PAIRS, learner=Learner.PRM)
"""Pairs of steps from the trees, as in rStar-Math."""
ROLLOUT_VALUES: RowKind[ValueRow] = RowKind(name="rollout-values", stored=store.VALUES, learner=Learner.PRM)
"""Value targets from the rollouts."""
ROLLOUT_STEP_PAIRS: RowKind[PreferencePair] = RowKind(name="rollout-step-pairs", stored=store.PAIRS, learner=Learner.PRM)
"""Pairs of steps from the rollouts."""
ESTIMATED_VALUES: RowKind[ValueRow] = RowKind(name="estimated-values", stored=store.VALUES, learner=Learner.PRM)
"""Value targets estimated by rollouts from the prefixes of trees."""


def trains_two_heads(config: Config) -> bool:
    """Say whether the SFT stage trains the policy and a value head on its body together."""
    return config.prm.trains and config.prm.body == "joint"


def estimates_values(config: Config) -> bool:
    """Say whether the PRM learns targets that are estimated by rollouts from every prefix."""
    return config.prm.trains and isinstance(config.prm.target, RolloutTarget)


def compares_steps(config: Config) -> bool:
    """Say whether the PRM learns from pairs of steps."""
    return isinstance(config.prm.target, StepPairs)


def trace_kind(config: Config) -> RowKind[Trace] | None:
    """Return the kind of rows of the SFT stage; None if the policy learns from preferences alone."""
    return TRACES if config.sft.enabled else None


def soft_kind(config: Config) -> RowKind[SoftTarget] | None:
    """Return the kind of weighted steps of the SFT stage; None if it learns from traces alone."""
    return SOFT_TARGETS if config.sft.enabled and config.labels.soft_targets.type != "none" else None


def preference_kind(config: Config) -> RowKind[PreferencePair] | RowKind[GradedRow] | None:
    """Return the kind of rows that the preference loss takes; None if the policy learns from traces alone."""
    if not config.preference.enabled:
        return None
    if config.preference.unpaired:
        return GRADED
    return PAIRS if config.search.refinement is None else REFINED


def gradient_kind(config: Config) -> RowKind[AdvantageRow] | None:
    """Return the kind of rows of policy gradients; None without them."""
    return ADVANTAGES if config.gradient.enabled else None


def prm_kind(config: Config) -> RowKind[ValueRow] | RowKind[PreferencePair]:
    """Return the kind of rows that the PRM learns from."""
    if isinstance(config.prm.target, RolloutTarget):
        return ESTIMATED_VALUES
    if compares_steps(config):
        return ROLLOUT_STEP_PAIRS if config.prm.rollouts else STEP_PAIRS
    return ROLLOUT_VALUES if config.prm.rollouts else VALUES


def has_rows(shards: Iterable[Path]) -> bool:
    """Say whether any of some Parquet shards holds a row."""
    return any(count_rows(path) for path in shards)
