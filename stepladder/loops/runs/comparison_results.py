"""The results of a comparison of search methods: contents of ``eval.json``, the cells and ``results.json`` of ``stepladder eval``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import with_config

from stepladder.data.metrics.answers import Interval
from stepladder.errors import CheckpointError
from stepladder.files import atomic_write_text, read_json
from stepladder.loops.runs.json_records import CLOSED, record_of
from stepladder.loops.runs.token_use import sum_known

COMPARISON_SCHEMA_VERSION = 1
"""Version of the stored form of a comparison; another one is refused."""

Setting = bool | int | float | str | None
"""Value of a setting of a search method."""

_CELL = "a cell of an evaluation"
_CELL_REMEDY = "remove the file and run the same command again"


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemsFacts:
    """The problems of a comparison."""

    source: str
    """Their source, for people."""
    count: int
    """How many there are."""
    hash: str
    """Identifies questions, answers and their order."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """A model of a comparison."""

    path: str
    """Directory or hub id."""
    hash: str
    """Hash of the files of a directory; the hub id of a model elsewhere."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonFacts:
    """The compared methods, and the software versions."""

    schema_version: int
    """Stored form."""
    stepladder: str
    """Version of stepladder."""
    python: str
    """Version of Python."""
    packages: dict[str, str]
    """Versions of the packages that matter."""
    git_revision: str | None
    """Revision of the checkout; None for an installed package."""
    problems: ProblemsFacts
    """The problems."""
    policy: ModelFacts
    """The policy."""
    prm: tuple[ModelFacts, ...]
    """The PRMs; several are an ensemble; empty without one."""
    config_hash: str
    """Hash of the configuration."""
    config: dict[str, Any]
    """The resolved configuration, as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "ComparisonFacts":
        """Rebuild a record from ``to_dict``'s form.

        Raises:
            CheckpointError: If it is something else, or of another version.
        """
        what = "what an evaluation of this version wrote"
        facts = record_of(cls, plain, place=place, what=what, remedy="choose another --out")
        if facts.schema_version != COMPARISON_SCHEMA_VERSION:
            raise CheckpointError(
                f"{place}: schema_version must be {COMPARISON_SCHEMA_VERSION}: got {facts.schema_version} -- choose another --out"
            )
        return facts


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class CellFacts:
    """Identity of a cell's results."""

    method: str
    """The method and its changed settings, as the user wrote them."""
    settings: dict[str, Setting]
    """All settings of the method."""
    budget: dict[str, Setting]
    """Caps per problem."""
    seed: int
    """Seed of the searches."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class CellRow:
    """A search of one problem."""

    problem_id: str
    """Key of the problem."""
    answer: str | None
    """The answer that was known within the budget; None without any."""
    correct: bool
    """Whether it is right."""
    generated_tokens: int
    """Tokens sampled, those beyond the budget included."""
    steps: int
    """Steps of the tree."""
    simulations: int
    """Simulations done."""
    policy_calls: int
    """Requests to the policy."""
    scored_tokens: int
    """Tokens of the steps sent to the PRM."""
    stop_reason: str
    """Why the search ended."""
    credit: float | None = None
    """The verifier's number for the answer, in [0, 1]; None if it gave none."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class CellCosts:
    """Total cost of the searches of a shard."""

    seconds: float
    """Wall-clock time of one worker."""
    policy_seconds: float
    """Time of these in the policy."""
    prm_seconds: float
    """Time of these in the PRM."""
    prm_calls: int
    """Requests to the PRM."""
    policy_forwarded: int | None = None
    """Tokens that went through the policy's model; None if its backend does not tell."""
    prm_forwarded: int | None = None
    """Tokens that went through the PRM, 0 without one; None if its backend does not tell."""

    @classmethod
    def sum(cls, parts: Sequence["CellCosts"]) -> "CellCosts":
        """Add the costs of several shards."""
        return cls(
            seconds=sum(part.seconds for part in parts),
            policy_seconds=sum(part.policy_seconds for part in parts),
            prm_seconds=sum(part.prm_seconds for part in parts),
            prm_calls=sum(part.prm_calls for part in parts),
            policy_forwarded=sum_known(part.policy_forwarded for part in parts),
            prm_forwarded=sum_known(part.prm_forwarded for part in parts),
        )


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class CellShard:
    """A shard of problems searched with one method at one budget with one seed."""

    facts: CellFacts
    """What it is, so that a later call can tell whether it holds what that looks for."""
    rows: list[CellRow]
    """One row per problem."""
    costs: CellCosts
    """What they cost."""

    def save(self, path: Path) -> None:
        """Write the shard as JSON.

        Raises:
            CheckpointError: If the place cannot be written.
        """
        atomic_write_text(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path, facts: CellFacts) -> "CellShard":
        """Read a shard that must be of some method, budget and seed.

        Raises:
            CheckpointError: If the file is not a shard, or is of another method, budget or seed.
        """
        shard = record_of(cls, read_json(path, what=_CELL, remedy=_CELL_REMEDY), place=path, what=_CELL, remedy=_CELL_REMEDY)
        if shard.facts != facts:
            found, known = {**shard.facts.settings, **shard.facts.budget}, {**facts.settings, **facts.budget}
            changed = [name for name, value in found.items() if known.get(name) != value]
            raise CheckpointError(
                f"{path}: holds results of {shard.facts.method!r} with other settings ({', '.join(changed) or 'renamed'}) than "
                f"{facts.method!r} has now -- remove {path.parents[2]} or choose another --out"
            )
        return shard


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class MethodFigures:
    """A method at one budget, over its seeds; costs are means per search."""

    method: str
    """The method, under its name in tables and plots."""
    budget: int | None
    """Generated tokens per problem; None for a method that takes no budget."""
    problems: int
    """Problems searched."""
    seeds: int
    """Searches of each problem."""
    accuracy: float
    """Mean share of right answers, in [0, 1]."""
    interval: Interval
    """Its 95% interval over problems."""
    answered: float
    """Share of searches with an answer, in [0, 1]."""
    tokens: float
    """Generated tokens within the budget."""
    tokens_beyond: float
    """Generated tokens beyond the budget, which taught nothing."""
    seconds: float
    """Wall-clock time of one worker."""
    policy_seconds: float
    """Time of this in the policy."""
    prm_seconds: float
    """Time of this in the PRM."""
    prm_calls: float
    """Requests to the PRM."""
    policy_calls: float
    """Requests to the policy."""
    scored_tokens: float
    """Tokens of the steps sent to the PRM."""
    simulations: float
    """Simulations done."""
    difference: float | None = None
    """Accuracy minus that of the baseline at the same budget; None for the baseline, and if it has no such budget."""
    difference_interval: Interval | None = None
    """Paired 95% interval of the difference, over problems."""
    credit: float | None = None
    """Mean of the verifier's numbers, in [0, 1]; None if it gives no partial credit."""
    flops: float | None = None
    """Floating-point operations of policy and PRM (``SearchFlops``); None if a model or its forwarded tokens are not known."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One search, as the results list it."""

    method: str
    """The method."""
    budget: int | None
    """Generated tokens per problem; None for a method that takes no budget."""
    seed: int
    """Seed of the search."""
    problem_id: str
    """Key of the problem."""
    answer: str | None
    """The answer that was known within the budget; None without any."""
    correct: bool
    """Whether it is right."""
    generated_tokens: int
    """Tokens sampled, those beyond the budget included."""
    stop_reason: str
    """Why the search ended."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonResults:
    """A finished comparison."""

    facts: ComparisonFacts
    """The compared methods, and the software versions."""
    methods: dict[str, dict[str, Setting]]
    """Settings of every method that differ from the defaults."""
    budgets: tuple[int, ...]
    """Generated tokens per problem, ascending."""
    seeds: int
    """Searches of each problem at each budget."""
    baseline: str | None
    """The method that every other one is set against; None if all take no budget."""
    figures: tuple[MethodFigures, ...]
    """The figures, method by method and by rising budget."""
    outcomes: tuple[Outcome, ...]
    """Every search."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON: the facts on the same level as the rest."""
        plain = asdict(self)
        return {**plain.pop("facts"), **plain}

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "ComparisonResults":
        """Rebuild a record from ``to_dict``'s form.

        Raises:
            CheckpointError: If it is something else, or of another version.
        """
        what, remedy = "the results of an evaluation", "run stepladder eval again"
        if not isinstance(plain, dict):
            raise CheckpointError(f"{place}: must be {what}: got {type(plain).__name__} -- {remedy}")
        named = {each.name for each in fields(ComparisonFacts)}
        facts = {name: value for name, value in plain.items() if name in named}
        rest = {name: value for name, value in plain.items() if name not in named}
        return record_of(cls, {"facts": ComparisonFacts.from_dict(facts, place), **rest}, place=place, what=what, remedy=remedy)
