"""The figures of a round, as ``round.json`` and ``metrics.jsonl`` hold them.

Records here are nested; their stored form is flat where it has always been, and ``to_dict`` and ``from_dict`` are the only places that know
its keys. A figure that was not measured is None.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import with_config

from stepladder.errors import CheckpointError
from stepladder.loops.runs.flops import FlopFigures
from stepladder.loops.runs.json_records import CLOSED, record_of
from stepladder.loops.runs.split_figures import SAMPLING_METHODS, AnswerMethod, SplitFigures, accuracy_keys, nested_split, value_of
from stepladder.loops.runs.token_use import RATIOS, TokenUse

ROUND_SCHEMA_VERSION = 1
"""Version of the stored form of a round's figures. A file without a version is of the first one."""

_WHAT, _TRAINING = "the figures of a round", "the summary of a training"
_REMEDY = "use the stepladder that wrote the run, or start another"
_OF_TRACES = ("traces", "revisions", "abstentions", "verdicts")
_OF_ITS_OWN = ("soft_targets", "pairs", "graded", "values")
"""Counts of kinds that only labelling writes: advantages may be those of a training during the search."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class RowCounts:
    """How many rows of one kind were kept and dropped."""

    kept: int
    """Rows kept."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    """Candidates not kept, by reason; only reasons that occurred."""

    @property
    def dropped(self) -> int:
        """Candidates not kept."""
        return sum(self.dropped_by_reason.values())

    @classmethod
    def sum(cls, parts: Sequence["RowCounts"]) -> "RowCounts":
        """Add the counts of several shards."""
        dropped: Counter[str] = Counter()
        for part in parts:
            dropped += Counter(part.dropped_by_reason)
        return cls(kept=sum(part.kept for part in parts), dropped_by_reason=dict(dropped))


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCounts:
    """Rows that labelling kept and dropped, by kind; None for kinds that the configuration does not need."""

    trees: RowCounts | None = None
    """Trees that the policy learns from, with ``labels.data = "on-policy"`` or a range of pass rates."""
    traces: RowCounts
    """Right solutions."""
    revisions: RowCounts | None = None
    """Revisions of wrong solutions."""
    abstentions: RowCounts | None = None
    """Abstentions on unsolved problems, written and the policy's own."""
    verdicts: RowCounts | None = None
    """Verdicts on steps."""
    soft_targets: RowCounts | None = None
    """Weighted steps, with ``labels.soft_targets``."""
    pairs: RowCounts
    """Preference pairs."""
    refined: RowCounts | None = None
    """Failed solutions that a refinement mends."""
    graded: RowCounts | None = None
    """Good and bad continuations."""
    advantages: RowCounts | None = None
    """Solutions or steps with advantages."""
    values: RowCounts
    """Value rows."""

    @property
    def by_kind(self) -> dict[str, RowCounts]:
        """The counts of the requested kinds."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: counts for name, counts in found.items() if counts is not None}

    @property
    def rows_by_folder(self) -> dict[str, int]:
        """Rows that labelling wrote, by the folder of their shards."""
        counts = self.by_kind
        # The first stage of the policy has one folder, whatever its rows are.
        traces = sum(counts[kind].kept for kind in _OF_TRACES if kind in counts)
        return {"traces": traces} | {kind.replace("_", "-"): counts[kind].kept for kind in _OF_ITS_OWN if kind in counts}

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {name: asdict(counts) for name, counts in self.by_kind.items()}

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "LabelCounts":
        """Rebuild a record from ``to_dict``'s form.

        Raises:
            CheckpointError: If it is something else.
        """
        return record_of(cls, plain, place=place, what="the counts of labels", remedy=_REMEDY)

    @classmethod
    def sum(cls, shards: Sequence["LabelCounts"]) -> "LabelCounts":
        """Add the counts of shards of one configuration, at least one."""
        kinds = [shard.by_kind for shard in shards]
        return cls(**{name: RowCounts.sum([counts[name] for counts in kinds]) for name in kinds[0]})


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """A training, without its wall-clock time."""

    updates: int
    """Optimiser updates, those before a resume included."""
    rows: int
    """Distinct rows trained on."""
    tokens: int
    """Tokens forwarded over all updates."""
    first_loss: float
    """Loss of the first update."""
    last_loss: float
    """Loss of the last update; on a GPU, mean of the last few."""
    mean_loss: float
    """Mean over the updates."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    layout: str
    """``trees`` if rows were packed, else ``paths``, with the reason if the settings asked for packing."""
    best_update: int | None = None
    """Update whose weights were kept; None if no rows were held out."""
    held_out_loss: float | None = None
    """Loss of these weights on the rows held out."""
    curve: tuple[tuple[int, float, float | None], ...] = ()
    """(last update, mean loss, mean gradient norm) of consecutive updates; empty if it was not kept."""
    ranking_accuracy: float | None = None
    """Share of the pairs whose preferred side is likelier under the trained policy; None for trainings without pairs."""
    members: tuple["TrainingSummary", ...] = ()
    """Summaries of the models of an ensemble; the figures are then their sums, and means of the losses."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        plain = asdict(self)
        del plain["members"]
        if self.ranking_accuracy is None:
            del plain["ranking_accuracy"]
        if self.members:
            del plain["best_update"], plain["held_out_loss"], plain["curve"]
            plain["members"] = [member.to_dict() for member in self.members]
        return plain

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "TrainingSummary":
        """Rebuild a record from ``to_dict``'s form; errors as for ``RoundRow.from_dict``."""
        return record_of(cls, plain, place=place, what=_TRAINING, remedy=_REMEDY)

    @classmethod
    def of_ensemble(cls, members: Sequence["TrainingSummary"]) -> "TrainingSummary":
        """Return the summary of several models that were trained alike, or that of a single one."""
        if len(members) == 1:
            return members[0]
        return cls(
            updates=sum(member.updates for member in members),
            rows=sum(member.rows for member in members),
            tokens=sum(member.tokens for member in members),
            first_loss=sum(member.first_loss for member in members) / len(members),
            last_loss=sum(member.last_loss for member in members) / len(members),
            mean_loss=sum(member.mean_loss for member in members) / len(members),
            dropped_by_reason=RowCounts.sum(
                [RowCounts(kept=member.rows, dropped_by_reason=member.dropped_by_reason) for member in members]
            ).dropped_by_reason,
            layout=members[0].layout,
            members=tuple(members),
        )


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class FailedTraining:
    """A training that could not succeed and left the earlier model in place."""

    failed: str
    """Why, in one sentence."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "FailedTraining":
        """Rebuild a record from ``to_dict``'s form; errors as for ``RoundRow.from_dict``."""
        return record_of(cls, plain, place=place, what=_TRAINING, remedy=_REMEDY)


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyTraining:
    """The trainings of a round's policy, in their order; None for one that did not take place."""

    warmup: TrainingSummary | None = None
    """On solved problems, in round 0."""
    sft: TrainingSummary | None = None
    """On traces."""
    preference: TrainingSummary | None = None
    """On pairs or graded rows."""
    gradient: TrainingSummary | None = None
    """On advantages."""

    @property
    def stages(self) -> dict[str, TrainingSummary]:
        """The trainings that took place, by name."""
        found = {"warmup": self.warmup, "sft": self.sft, "preference": self.preference, "gradient": self.gradient}
        return {name: summary for name, summary in found.items() if summary is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {name: summary.to_dict() for name, summary in self.stages.items()}

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "PolicyTraining":
        """Rebuild a record from ``to_dict``'s form; errors as for ``RoundRow.from_dict``."""
        return record_of(cls, plain, place=place, what=_TRAINING, remedy=_REMEDY)


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class RoundTraining:
    """The trainings of a round."""

    policy: PolicyTraining = field(default_factory=PolicyTraining)
    """Those of the policy."""
    prm: TrainingSummary | FailedTraining | None = None
    """That of the PRM; None if none was trained."""

    def to_dict(self, number: int) -> dict[str, Any]:
        """Return plain containers, for JSON; ``number`` is the round, since the first has no key for the PRM."""
        policy = self.policy.to_dict()
        if number == 0:
            return {"policy": policy} if policy else {}
        return {"policy": policy, "prm": {} if self.prm is None else self.prm.to_dict()}


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class LevelCount:
    """The training search on the problems of one level."""

    problems: int
    """Problems searched."""
    solved: int
    """Problems of these with a right solution."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFigures:
    """The training search of a round."""

    problems: int
    """Problems searched."""
    solved: int
    """Problems of these with a right solution."""
    nodes: int
    """Nodes of all trees, roots included."""
    generated_tokens: int
    """Tokens sampled."""
    policy_calls: int
    """Requests to the policy."""
    scored_tokens: int
    """Tokens of the steps sent to the PRM."""
    failed_steps: int
    """Steps on which the policy's backend failed."""
    token_use: TokenUse | None = None
    """Tokens that the backends forwarded; None if they were not recorded."""
    rollout_tokens: int = 0
    """Tokens sampled for the PRM to learn from, apart from the search."""
    unique_share: float | None = None
    """Tokens of the trees' steps, each step of a problem once, per token sampled, in [0, 1]: the rest went into repeats and rollouts. None
    if it was not recorded, or nothing was sampled."""
    levels: dict[str, LevelCount] = field(default_factory=dict)
    """Problems by level, in the order of the levels; empty for problems without."""
    trees: int | None = None
    """Trees searched; a problem may have several. None if they were not counted."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; the tokens that the backends forwarded stand among the other counts."""
        plain = asdict(self)
        del plain["token_use"], plain["rollout_tokens"], plain["levels"]
        use = {} if self.token_use is None else self.token_use.figures()
        levels = {level: asdict(count) for level, count in self.levels.items()}
        return {**plain, **use, "rollout_tokens": self.rollout_tokens, **({"levels": levels} if levels else {})}


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class FailureFigures:
    """Samples of a round that the policy could not give."""

    failed_samples: dict[str, int]
    """Failed samples by the folder of their shards; only folders with some."""
    first_failure: str | None
    """Message of the first failed sample."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class OverlapFigures:
    """The models with which a round that may overlap the one before samples first."""

    policy_version: int
    """Round of the policy."""
    scorer_version: int | None
    """Round of the PRM that scores the search; None without any, and where the round samples for its own PRM first."""
    prm_rounds_old: int
    """Gates whose decision came too late for the search: 1 if the best PRM is a newer one, else 0."""
    began_early: bool
    """Whether the round could begin with these models before their gate decided; False if the gate refused those it could begin with."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRow:
    """A finished round."""

    round: int
    """Number of the round; 0 is the warm-up."""
    accepted: bool
    """Whether the gate made the round's policy the best one."""
    accepted_reason: str
    """Why, in one clause."""
    prm_accepted: bool
    """Whether the gate made the round's PRM the best one."""
    prm_accepted_reason: str
    """Why, in one clause."""
    best_policy: int
    """Round of the best policy after this round."""
    best_prm: int | None
    """Round of the PRM that guides the next search, 0 for a given one; None without any."""
    policy_version: int
    """Round of the policy that was measured."""
    scorer_version: int | None
    """Round of the PRM that was measured; None without any."""
    held_out: SplitFigures
    """Figures on held-out problems, by which the gate decides."""
    test: SplitFigures
    """Figures on test problems, which take no part in the run."""
    generated_tokens: int
    """Tokens that the round generated in search, rollouts and evaluation."""
    search: SearchFigures | None = None
    """The training search; None in round 0."""
    labels: LabelCounts | None = None
    """Training rows made from the search; None in round 0."""
    training: RoundTraining = field(default_factory=RoundTraining)
    """The trainings."""
    nothing_learned: str | None = None
    """Reason for a policy without training rows, and advice; None if it had rows."""
    failures: FailureFigures | None = None
    """Failed samples; None if none failed."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the run, by name."""
    warnings: tuple[str, ...] = ()
    """What is known to go wrong, one sentence each."""
    flops: FlopFigures | None = None
    """Floating-point operations; None if the policy's parameters are not known."""
    overlap: OverlapFigures | None = None
    """The models that sampled first; None in round 0 and without ``run.overlap``."""
    seconds: float | None = None
    """Wall-clock time of the last call that worked on the round."""
    schema_version: int = ROUND_SCHEMA_VERSION
    """Stored form."""

    @property
    def trained_policy(self) -> bool:
        """Whether the round trained a policy of its own."""
        return self.policy_version == self.round

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; the figures that are read most stand at the top a second time."""
        return {
            "schema_version": self.schema_version,
            "round": self.round,
            "accepted": self.accepted,
            "accepted_reason": self.accepted_reason,
            "prm_accepted": self.prm_accepted,
            "prm_accepted_reason": self.prm_accepted_reason,
            "best_policy": self.best_policy,
            "best_prm": self.best_prm,
            "policy_version": self.policy_version,
            "scorer_version": self.scorer_version,
            **_headline(self.test),
            "held_out": self.held_out.to_dict(),
            "test": self.test.to_dict(),
            "generated_tokens": self.generated_tokens,
            "search": None if self.search is None else self.search.to_dict(),
            "labels": None if self.labels is None else self.labels.to_dict(),
            "training": self.training.to_dict(self.round),
            **({} if self.nothing_learned is None else {"nothing_learned": self.nothing_learned}),
            **({} if self.failures is None else asdict(self.failures)),
            **({"settings": self.settings} if self.settings else {}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            **({} if self.flops is None else {"flops": asdict(self.flops)}),
            **({} if self.overlap is None else {"overlap": asdict(self.overlap)}),
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, plain: object, place: object) -> "RoundRow":
        """Rebuild a record from ``to_dict``'s form.

        Args:
            plain: Plain containers from JSON.
            place: The file that held them, for messages.

        Raises:
            CheckpointError: If the version is another one, a key is missing or foreign, or a value has another type.
        """
        if not isinstance(plain, dict):
            raise CheckpointError(f"{place}: must be {_WHAT}: got {type(plain).__name__} -- {_REMEDY}")
        version = plain.get("schema_version", ROUND_SCHEMA_VERSION)
        if version != ROUND_SCHEMA_VERSION:
            raise CheckpointError(f"{place}: schema_version must be {ROUND_SCHEMA_VERSION}: got {version!r} -- {_REMEDY}")
        return record_of(cls, _nested_row(plain), place=place, what=_WHAT, remedy=_REMEDY)


def _headline(test: SplitFigures) -> dict[str, Any]:
    search = test.search
    return {
        **accuracy_keys("policy_pass_at_1", test.pass_at_1),
        **accuracy_keys("search_accuracy", test.accuracy(AnswerMethod.SEARCH)),
        **{f"{method}_accuracy": value_of(test.accuracy(method)) for method in SAMPLING_METHODS},
        "pass_at_k": test.pool.pass_at_k,
        "tokens_per_problem": None if search is None else search.tokens_per_problem,
        "prm_within_problem_auc": test.pool.prm_within_problem_auc,
    }


# From the stored form, which is flat, to nested containers that have the records' fields. What is no object of JSON is left as it is:
# it is refused when the record is made.


def _nested_row(plain: dict[str, Any]) -> dict[str, Any]:
    # The headline repeats figures of the test split.
    headline = {"policy_pass_at_1", "policy_pass_at_1_interval", "search_accuracy", "search_accuracy_interval"}
    headline |= {f"{method}_accuracy" for method in SAMPLING_METHODS} | {"pass_at_k", "tokens_per_problem", "prm_within_problem_auc"}
    row = {name: value for name, value in plain.items() if name not in headline}
    failures = {each.name: row.pop(each.name) for each in fields(FailureFigures) if each.name in row}
    row["failures"] = failures or None
    nest = {"held_out": nested_split, "test": nested_split, "search": _nested_search, "training": _nested_training}
    return row | {name: change(dict(row[name])) for name, change in nest.items() if isinstance(row.get(name), dict)}


def _nested_training(plain: dict[str, Any]) -> dict[str, Any]:
    # A round that trained no PRM has an object without keys.
    return {**plain, "prm": plain.get("prm") or None}


def _nested_search(plain: dict[str, Any]) -> dict[str, Any]:
    use = {each.name: plain.pop(each.name) for each in fields(TokenUse) if each.name in plain}
    counts = {name: value for name, value in plain.items() if name not in RATIOS}
    return {**counts, "token_use": use or None}
