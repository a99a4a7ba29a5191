"""Sections ``search``, ``labels``, ``evaluate`` and ``gate``: the search, the use of its trees, and the measurements."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from stepladder.data.labels.advantage_rules import AdvantageRule, GroupAdvantages
from stepladder.data.labels.graded import GradedRule, GradedSteps
from stepladder.data.labels.pair_rules import EvidencePairs, PairRule
from stepladder.data.labels.soft_targets import NoSoftTargets, SoftTargetRule
from stepladder.data.labels.traces import TraceOrder
from stepladder.data.labels.values import ValueTarget
from stepladder.loops.config.section import Section, Variant
from stepladder.mcts.allocation import Allocation, Uniform
from stepladder.settings import Count, NonNegative, Share
from stepladder.types import ROOT_ACTION

DEFAULT_METHOD = "mcts"
"""The method of a section that names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainEnsemble:
    """One score of several PRMs."""

    type: Literal["mean", "min"] = "mean"
    """Their mean, or the worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VarianceEnsemble:
    """Mean score of several PRMs less a part of their variance."""

    type: Literal["mean-variance"] = "mean-variance"
    """The name."""
    penalty: NonNegative = 0.5
    """Weight of the variance, >= 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoBound:
    """Scores as they are."""

    type: Literal["none"] = "none"
    """The name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreBound:
    """Scores that are bounded from above."""

    type: Literal["clip", "par"] = "clip"
    """``clip``: no score above ``at``; ``par``: sigmoid(score - ``at``)."""
    at: Share = 0.5
    """Bound of the scores, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoCheck:
    """Steps are not checked."""

    type: Literal["none"] = "none"
    """The name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArithmeticCheck:
    """A step that states a false equation of plain numbers scores at most ``cap``."""

    type: Literal["arithmetic"] = "arithmetic"
    """The name."""
    cap: Share = 0.0
    """Highest score of a step that fails the check, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeCheck:
    """A step scores at most ``cap`` if its Python does not run after that of the earlier steps."""

    type: Literal["code"] = "code"
    """The name."""
    cap: Share = 0.0
    """Highest score of a step that fails the check, in [0, 1]."""
    allow_unsandboxed: bool = False
    """Run the policy's code with your own rights if the system cannot sandbox it."""


class ScoresConfig(Section):
    """Changes to the scores of one or several PRMs before a search uses them."""

    ensemble: Annotated[PlainEnsemble | VarianceEnsemble, Variant("mean")] = PlainEnsemble()
    """One score of several PRMs': ``mean``, ``min``, or ``mean-variance`` with its ``penalty``."""
    entropy_penalty: float = Field(default=0.0, ge=0)
    """Penalty on the score of a head of bins at maximum entropy, >= 0; 0 takes only its mean."""
    bound: Annotated[NoBound | ScoreBound, Variant("none")] = NoBound()
    """Bound on scores: ``none``, ``clip`` or ``par``."""
    check: Annotated[NoCheck | ArithmeticCheck | CodeCheck, Variant("none")] = NoCheck()
    """Check of steps by a tool: ``none``, ``arithmetic`` or ``code``."""


class ActionConfig(Section):
    """A kind of step that a search samples after its own prompt; the table's name is the action's."""

    share: float = Field(gt=0, le=1)
    """Its part of the samples after a node, in (0, 1]; the shares of all actions sum to 1."""
    prompt: str = "{prompt}"
    """Text of the prompt for these samples: ``{prompt}`` is replaced by the prompt of ``format``, ``{question}`` by the question."""
    after: tuple[str, ...] = ()
    """Actions whose steps it may follow, ``start`` for the question; empty for all. The others share its part elsewhere."""
    to_end: bool = False
    """Sample on to the end of the solution: all of it is one node."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        if "{prompt}" not in value and "{question}" not in value:
            raise ValueError("prompt must contain '{prompt}' or '{question}'")
        return value


class RefinementConfig(Section):
    """Trees of refinements below the failed solutions of a search, which the PRM, a judge, writes and judges (SPaR)."""

    prompt: str = "{question}\n\nThis solution fails:\n\n{solution}\n\n{critique}\n\nWrite a solution that mends it."
    """The question that asks for a refinement; ``{question}``, ``{solution}`` and ``{critique}``, a verdict of the judge, are replaced."""
    children: int = Field(default=3, ge=1)
    """Refinements of a solution."""
    keep: int = Field(default=2, ge=1)
    """Refinements of a level that are refined in turn, those of highest score."""
    depth: int = Field(default=3, ge=1)
    """Levels of a tree. It ends before at the first level with an accepted refinement."""
    accept: float = Field(default=0.5, ge=0, lt=1)
    """A solution fails with a score of at most this, in [0, 1), as ``evaluate.aggregation`` says; a refinement above it is accepted."""
    per_problem: int = Field(default=2, ge=1)
    """Failed solutions of a problem that are refined, those of lowest score."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of refinements."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        missing = [place for place in ("{question}", "{solution}") if place not in value]
        if missing:
            raise ValueError(f"prompt must contain {missing[0]!r}: got {value!r}")
        return value


class SearchConfig(Section):
    """How to search."""

    method: str = DEFAULT_METHOD
    """Name of a search method."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the method that differ from its defaults."""
    simulations: int = Field(default=32, ge=1)
    """Simulations per problem."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Generated tokens of a tree after which a run begins no further samples; those that have begun are finished, so a tree may have more.
    None is no cap."""
    max_depth: int = Field(default=16, ge=1)
    """Steps from the question to the deepest node."""
    max_step_tokens: int = Field(default=256, ge=1)
    """Tokens of one step."""
    max_trees: int = Field(default=256, ge=1)
    """Problems searched at once in one worker."""
    allocation: Annotated[Allocation, Variant("uniform")] = Uniform()
    """How a round's search is shared among the problems: ``uniform``, ``unsolved-first``, ``knapsack``, ``prompt-curriculum`` or
    ``by-pass-rate``; see docs/runs.md."""
    start: Literal["question", "first-samples"] = "question"
    """How trees begin: with new draws after the ``question``, or with the ``first-samples`` of the round, on which its PRM was trained
    (``prm.when`` = ``before-search``). They are the first draws of a problem's first tree, for methods that draw solutions."""
    scores: ScoresConfig = ScoresConfig()
    """Changes to the PRM's scores before the search uses them."""
    tool: str | None = Field(default=None, pattern=r"^[^:]+(:\w+)?$")
    """Tool whose output follows a step as an observation: ``code`` runs the Python that a step completes, in the sandbox; a name such as
    ``package.module:function`` or ``file.py:function`` calls a function. None has no observations. See docs/tools.md."""
    tool_deadline_s: int = Field(default=5, ge=1)
    """CPU seconds of one call."""
    max_tool_errors: int = Field(default=2, ge=1)
    """Errors of the tool in a row after which a path ends; the policy sees those before."""
    observation: str = "{output}\n"
    """Text of an observation; ``{output}`` is replaced by what the tool returned."""
    max_observation_tokens: int = Field(default=256, ge=1)
    """Tokens of an observation; a longer one is cut."""
    tool_unsandboxed: bool = False
    """Run the policy's code with your own rights if the system cannot sandbox it."""

    refinement: RefinementConfig | None = None
    """Trees of refinements below failed solutions, after the search; their pairs take the place of ``labels.pairs``. None has none."""
    actions: dict[str, ActionConfig] = Field(default_factory=dict)
    """Kinds of step with their own prompts and shares of the samples; without any, all steps are of one kind. See docs/actions.md."""

    @field_validator("actions")
    @classmethod
    def _check_actions(cls, actions: dict[str, ActionConfig]) -> dict[str, ActionConfig]:
        if not actions:
            return actions
        total = math.fsum(action.share for action in actions.values())
        if abs(total - 1) > _SHARES_ERROR:
            raise ValueError(f"shares must sum to 1: got {total:.6g} of {', '.join(actions)}")
        if ROOT_ACTION in actions:
            raise ValueError(f"an action must not be called {ROOT_ACTION!r}, which is the question")
        for name, action in actions.items():
            unknown = [each for each in action.after if each not in (ROOT_ACTION, *actions)]
            if unknown:
                raise ValueError(f"{name}.after must name {ROOT_ACTION} or actions ({', '.join(actions)}): got {unknown[0]!r}")
        for place in (ROOT_ACTION, *actions):
            if all(action.after and place not in action.after for action in actions.values()):
                raise ValueError(f"some action must be able to follow {place}: got none")
        return actions

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        whole = [name for name, action in self.actions.items() if action.to_end]
        if whole and self.tool is not None:
            raise ValueError(f"a tool runs between single steps: got tool {self.tool!r} and actions.{whole[0]}.to_end")
        return self

    @field_validator("observation")
    @classmethod
    def _check_observation(cls, value: str) -> str:
        if "{output}" not in value:
            raise ValueError(f"observation must contain '{{output}}': got {value!r}")
        return value

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without a tool, actions or first samples, settings are written, and so hashed, as before there were any.
        unused = (*(() if self.tool is not None else TOOL_SETTINGS), *(() if self.actions else ("actions",)))
        unused = (*unused, *(("start",) if self.start == "question" else ()), *(("refinement",) if self.refinement is None else ()))
        return {name: value for name, value in write(self).items() if name not in unused}


_SHARES_ERROR = 1e-6
"""How far the sum of shares may be from 1, because thirds have no end."""
TOOL_SETTINGS = ("tool", "tool_deadline_s", "max_tool_errors", "observation", "max_observation_tokens", "tool_unsandboxed")
"""Settings of ``search`` that only a tool needs."""
CODE_TOOL = "code"
"""The tool that runs code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllRounds:
    """Train on the rows of all rounds so far, or of this round only."""

    type: Literal["accumulate", "replace"] = "accumulate"
    """``accumulate`` or ``replace``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentRounds:
    """Train on the rows of the last rounds."""

    type: Literal["window"] = "window"
    """The name."""
    window: Count = 2
    """Rounds kept, >= 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentVersions:
    """Train on the trees of the last policy versions together. A rejected round starts no new version."""

    type: Literal["on-policy"] = "on-policy"
    """The name."""
    window: Count = 2
    """Policy versions kept, >= 1."""


class AbstentionConfig(Section):
    """An answer that says that the policy does not know, and when it is learned."""

    answer: str = Field(min_length=1)
    """The answer, as ``format.answer_pattern`` reads it out of ``text``, such as ``I don't know``."""
    text: str = Field(min_length=1)
    """The step that gives it, closed by ``format.step_end``."""
    refusals: int = Field(default=0, ge=0)
    """Wrong solutions per unsolved problem that are taught with this step in the place of their last one (R-tuning)."""
    kept: int = Field(default=1, ge=0)
    """The policy's own abstentions per unsolved problem that are taught: those that come after more than ``after`` steps."""
    after: float = 0.0
    """Steps after which an abstention is worth as much as it costs; a rule may climb it (``rules.hill_climb``)."""
    slope: float = Field(default=1.0, gt=0)
    """How fast the worth of an abstention rises with the steps before it, > 0."""


class LabelsConfig(Section):
    """How trees become training data."""

    value: ValueTarget = ValueTarget.TREE_VALUE
    """Value of a step that traces, pairs and graded rows go by: ``tree-value`` as the search backed it up, ``q``, ``monte-carlo``, the
    PRM's ``score``, ``hard-max``, ``distance``, ``outcome`` or ``progress``; see docs/training.md."""
    rollouts: bool = True
    """Make the policy's rows of the graded samples of ``prm.rollouts``, too: those of the round before, or with ``prm.when`` =
    ``before-search`` those of the same round."""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the SFT rows of every round that are solved examples of ``warmup.solutions``, in [0, 1). Every pass over the rows takes
    other ones, at random, each once before any comes twice. A PRM with the loss ``implicit-*`` and a training of two heads at once take the
    same ones in every pass."""
    traces_per_problem: int = Field(default=2, ge=1)
    """Correct solutions kept per problem for SFT, in the order of ``trace_by``."""
    trace_by: TraceOrder = TraceOrder.VALUE
    """Which of them come first: those of best ``value`` or PRM ``score``, the ``shortest``, or any at ``random``."""
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)
    """The policy learns from problems of which at least this share of the round's ends is right, in [0, 1]."""
    max_pass_rate: float = Field(default=1.0, ge=0, le=1)
    """The policy learns from problems of which at most this share of the round's ends is right, in [0, 1]."""
    min_trace_value: float = Field(default=0.0, ge=0, le=1)
    """Smallest value that every step of such a solution must have, in [0, 1]."""
    min_trace_reward: float | None = None
    """Keep only such solutions with a larger reward: 1, plus a fifth of the smallest PRM score of their steps (B-STaR). Unscored steps do
    not count; None keeps all."""
    revisions: int = Field(default=0, ge=0)
    """Revision traces per problem for SFT: a mistake as context, then the right way on."""
    revision_of: Literal["step", "solution"] = "step"
    """The revised part: the way to a first wrong step (Agent-R), or a whole wrong solution (RISE)."""
    revision_text: str = ""
    """Steps between the mistake and the right continuation, which state that something was wrong; closed by ``format.step_end``."""
    abstention: AbstentionConfig | None = None
    """An answer "I don't know", which the policy learns (SFT) for problems that it does not solve; None teaches none."""
    verdicts: int = Field(default=0, ge=0)
    """Right steps per problem, and as many wrong ones, whose verdicts the policy learns to say (SFT), as ``prm.spec`` asks for them; for a
    policy that judges itself."""
    pairs: Annotated[PairRule, Variant("evidence")] = EvidencePairs()
    """Rule that chooses preference pairs, with its settings; see docs/training.md."""
    soft_targets: Annotated[SoftTargetRule, Variant("none")] = NoSoftTargets()
    """Steps that the policy learns in proportion to the search's distribution, beside the traces: ``none``, ``visits`` or
    ``improved-policy``; see docs/training.md."""
    graded: Annotated[GradedRule, Variant("steps")] = GradedSteps()
    """Rows for losses without pairs: steps that change the value, or right and wrong solutions."""
    advantages: Annotated[AdvantageRule, Variant("group")] = GroupAdvantages()
    """Rule that gives every token an advantage for policy gradients (``gradient``), with its settings; see docs/training.md."""
    from_refused: bool = True
    """Learn also from the rows of earlier rounds whose policy the gate refused."""
    data: Annotated[AllRounds | RecentRounds | RecentVersions, Variant("accumulate")] = AllRounds()
    """Which rounds the policy learns from."""

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without these, settings are written, and so hashed, as before there were any.
        unused = {"verdicts": 0, "abstention": None, "min_pass_rate": 0.0, "max_pass_rate": 1.0}
        return {name: value for name, value in write(self).items() if name not in unused or value != unused[name]}

    @model_validator(mode="after")
    def _check_pass_rates(self) -> Self:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(f"min_pass_rate must be at most max_pass_rate: got {self.min_pass_rate} > {self.max_pass_rate}")
        return self


class EvaluateConfig(Section):
    """Measurements after each round."""

    method: str = DEFAULT_METHOD
    """Search method of the search accuracy."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the method that differ from its defaults."""
    simulations: int = Field(default=16, ge=1)
    """Simulations per problem."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Cap on generated tokens as ``search.max_tokens``; None is no cap. ``solve`` and ``serve``, whose default it is, never exceed it."""
    samples: int = Field(default=16, ge=1)
    """Independent full solutions per problem for majority, best-of-n, the weighted vote and the PRM's AUC. The votes get those that fit the
    search's tokens, so there should be enough of them; the report says where there are not."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of those samples."""
    aggregation: Literal["last", "min", "mean", "product", "geometric-mean", "max", "min-form", "log-sigmoid"] = "last"
    """Aggregation of a sample's step scores."""
    scores: ScoresConfig = ScoresConfig()
    """Changes to the PRM's scores, also in ``solve``."""
    divergence: bool = False
    """Measure how far each round's policy has moved from the one that the run began with, which is then loaded, too: the KL divergence a
    token, on samples at ``temperature`` 1."""

    @model_validator(mode="after")
    def _check_divergence(self) -> Self:
        if self.divergence and self.temperature != 1:
            raise ValueError(f"divergence is measured on samples at temperature 1: got {self.temperature}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without the divergence, settings are written, and so hashed, as before there was one.
        return {name: value for name, value in write(self).items() if name != "divergence" or value}


class GateConfig(Section):
    """When a round's models replace the best ones."""

    rule: Literal["drop", "not-worse", "better"] = "drop"
    """A model is accepted if its figure has not dropped by more than ``max_drop``; unless a paired test on the held-out problems says that
    it is worse; or only if the test says that it is better."""
    max_drop: float = Field(default=0.0, ge=0, le=1)
    """Largest drop of held-out accuracy (policy) or within-problem AUC (PRM) with which ``drop`` still accepts a model."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the paired test, in (0.5, 1)."""
    min_problems: int = Field(default=5, ge=1)
    """Held-out problems that must have been measured; for a PRM, those with right and wrong samples."""
    min_rows: int = Field(default=2, ge=1)
    """Rows that the model must have learned from."""
