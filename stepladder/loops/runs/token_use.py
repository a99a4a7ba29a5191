"""Reuse of computed tokens by the backends: forwarded tokens compared with the tokens of the trees.

A tree's unique tokens are its prompt and all its steps, each once. A policy or a scorer with a perfect cache forwards exactly these.
Samples that were merged with an equal sibling, and rollouts, are forwarded too and are not among them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import with_config

from stepladder.files import read_json
from stepladder.interfaces import Policy, StepScorer
from stepladder.loops.runs.json_records import CLOSED, record_of
from stepladder.types import TreeRecord

RATIOS = ("cached_share", "forwarded_per_unique_token", "prm_forwarded_per_unique_token")
"""Names of the figures that follow from the counts."""

_Count = int | None


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class TokenUse:
    """Tokens of some searches; a count is None if the backend does not tell."""

    unique_tokens: int
    """Tokens of the trees."""
    forwarded_tokens: _Count
    """Tokens that went through the policy's model."""
    prefix_tokens: _Count
    """Tokens of the prefixes of all samples; every sample counts its own."""
    cached_tokens: _Count
    """Tokens of these that were not forwarded for it."""
    prm_forwarded_tokens: _Count
    """Tokens that went through the PRM."""

    @classmethod
    def of(cls, policy: Policy, scorer: StepScorer | None, *, unique_tokens: int) -> "TokenUse":
        """Read the counts of backends that did nothing but these searches."""
        counts = getattr(policy, "token_counts", None)
        return cls(
            unique_tokens=unique_tokens,
            forwarded_tokens=None if counts is None else counts.forwarded_tokens,
            prefix_tokens=None if counts is None else counts.prefix_tokens,
            cached_tokens=None if counts is None else counts.cached_tokens,
            prm_forwarded_tokens=getattr(scorer, "forwarded_tokens", None),
        )

    @classmethod
    def load(cls, path: Path) -> "TokenUse":
        """Read the counts next to a shard of trees.

        Raises:
            CheckpointError: If the file is something else.
        """
        what, remedy = "the tokens of a shard of trees", "remove the shard and this file, and run evolve again"
        return record_of(cls, read_json(path, what=what, remedy=remedy), place=path, what=what, remedy=remedy)

    @classmethod
    def sum(cls, parts: Sequence["TokenUse"]) -> "TokenUse":
        """Add the counts of several searches; one that a part does not have is None."""
        return cls(
            unique_tokens=sum(part.unique_tokens for part in parts),
            forwarded_tokens=sum_known(part.forwarded_tokens for part in parts),
            prefix_tokens=sum_known(part.prefix_tokens for part in parts),
            cached_tokens=sum_known(part.cached_tokens for part in parts),
            prm_forwarded_tokens=sum_known(part.prm_forwarded_tokens for part in parts),
        )

    @property
    def cached_share(self) -> float | None:
        """Share of the prefix tokens that were not forwarded, in [0, 1]."""
        return _ratio(self.cached_tokens, self.prefix_tokens)

    @property
    def policy_ratio(self) -> float | None:
        """Tokens that the policy forwarded, per unique token; 1 is perfect."""
        return _ratio(self.forwarded_tokens, self.unique_tokens)

    @property
    def prm_ratio(self) -> float | None:
        """The same for the PRM."""
        return _ratio(self.prm_forwarded_tokens, self.unique_tokens)

    def figures(self) -> dict[str, Any]:
        """Return the counts and their ratios, for metrics and JSON."""
        ratios = dict(zip(RATIOS, (self.cached_share, self.policy_ratio, self.prm_ratio), strict=True))
        return asdict(self) | {name: None if value is None else round(value, 4) for name, value in ratios.items()}

    def sentence(self) -> str | None:
        """Return a line for people; None if no backend tells."""
        parts = []
        if self.cached_share is not None:
            parts.append(f"{self.cached_share:.0%} of prefix tokens cached")
        if self.policy_ratio is not None:
            parts.append(f"policy forwarded {self.policy_ratio:.2f} tokens per token of the trees")
        if self.prm_ratio is not None:
            parts.append(f"PRM {self.prm_ratio:.2f}")
        return ", ".join(parts) or None


def unique_tokens(tree: TreeRecord) -> int:
    """Return the tokens of a tree's prompt, steps and observations, each once."""
    return len(tree.prompt_ids) + sum(map(len, tree.token_ids)) + sum(map(len, tree.given_ids))


def unique_share(trees: Sequence[TreeRecord], *, sampled_before: int = 0) -> float | None:
    """Return the tokens of the steps of trees, each step of a problem once, per token sampled, in [0, 1]; None if nothing was sampled.

    A step counts once however many trees of its problem, or draws of a sampled one, took it after the same steps. The rest of the sampled
    tokens went into such repeats, and into rollouts.

    Args:
        trees: The trees.
        sampled_before: Tokens of the samples with which trees began; no tree counts them as its own.
    """
    sampled = sum(tree.generated_tokens for tree in trees) + sampled_before
    return round(_distinct_tokens(trees) / sampled, 4) if sampled else None


def _distinct_tokens(trees: Sequence[TreeRecord]) -> int:
    """Return the tokens of all different steps of each problem; steps after different steps are different."""
    found: dict[tuple[str | int, tuple[int, ...], tuple[int, ...]], int] = {}
    total = 0
    for tree in trees:
        steps: list[str | int] = [tree.problem_id]
        for node in range(1, len(tree.parents)):
            given = tuple(tree.given_ids[node]) if tree.given_ids else ()
            key = (steps[tree.parents[node]], tuple(tree.token_ids[node]), given)
            if key not in found:
                found[key] = len(found)
                total += len(tree.token_ids[node])
            steps.append(found[key])
    return total


def use_path(shard: Path) -> Path:
    """Return the file of the ``TokenUse`` of a shard of trees."""
    return shard.with_suffix(".tokens.json")


def sum_known(counts: Iterable[_Count]) -> _Count:
    """Return the sum of counts; None if one of them is."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _ratio(count: _Count, whole: _Count) -> float | None:
    return count / whole if count is not None and whole else None
