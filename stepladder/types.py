"""The records that pass between the parts of stepladder.

Everything here is plain data: frozen, picklable, without models or randomness. Engines sample token ids, and the same ids are scored,
stored and trained on. The text next to them is for people. "Not scored" is ``None``, never a number.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

TREE_SCHEMA_VERSION = 1
"""Version of the stored form of ``TreeRecord``. Shards of other versions are refused."""

ROOT_ACTION = "start"
"""What stands for the question where actions are named that a step may follow."""

MAX_PARTIAL = 0.999
"""Largest outcome of a solution that is not right, so that 1.0 is right and nothing else."""


class StopReason(StrEnum):
    """Why a step, or a whole search, ended."""

    STEP = "step"
    """The step reached a step boundary; the solution continues."""
    END = "end"
    """The solution ended by itself: with end-of-sequence or a final answer. The node is terminal."""
    LENGTH = "length"
    """The token limit of a step, or the model's context, cut it. The node is truncated."""
    DEPTH = "depth"
    """The depth limit cut it. The node is truncated."""
    TOOL = "tool"
    """Errors of a tool in a row ended it. The node is truncated and counts as wrong."""
    ERROR = "error"
    """The backend failed on the step; the message says how. The node is truncated and counts as wrong."""
    SIMULATIONS = "simulations"
    """The search spent its simulations."""
    TOKENS = "tokens"
    """The search spent its generated tokens."""
    CALLS = "calls"
    """The search spent its policy calls."""
    SECONDS = "seconds"
    """The search spent its time."""
    VALUE = "value"
    """A solution reached the score that the method requires."""
    GOAL = "goal"
    """The best open leaf is worth no more than the best solution."""
    CONVERGED = "converged"
    """The answer has stayed the same for as long as the method requires."""
    EXHAUSTED = "exhausted"
    """Nothing is left to expand: every leaf is terminal or truncated."""

    # The hash of ``Enum`` is slow Python code, and every sampled step is looked up by its reason.
    __hash__ = str.__hash__


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A question as the search sees it. It has no answer field, so no search can read one."""

    id: str
    """Unique key within a run; everything is keyed by it, never by text."""
    question: str
    """The question, verbatim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledProblem:
    """A problem with its reference answer. Only verifiers and loaders hold it."""

    problem: Problem
    """The part that the search may see."""
    answer: str
    """Reference final answer, as the task's grading rule expects it; empty if a verifier needs none."""
    level: str | None = None
    """Group of the problem in figures, such as its difficulty; None without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One action of the policy: the tokens up to and including one step boundary."""

    token_ids: tuple[int, ...]
    """Sampled ids, boundary and end-of-sequence included; empty only on ERROR."""
    logps: tuple[float, ...]
    """log pi(token | everything before it) of each id at temperature 1, in nats, <= 0."""
    text: str
    """The ids decoded without special tokens, for people and for extracting the final answer."""
    stop_reason: StopReason
    """STEP, END, LENGTH or ERROR."""
    message: str | None = None
    """What went wrong; None unless the reason is ERROR."""
    sampling_logps: tuple[float, ...] | None = None
    """Log-probability of each id under the distribution that was sampled, with its temperature and without ids that are never sampled; None
    if that is the one of ``logps``, or unknown."""
    given_ids: tuple[int, ...] = ()
    """The observation: tokens after the step that the policy did not sample. They are context of what follows, and nothing else."""
    given_text: str = ""
    """The observation as text."""
    action: str = ""
    """The kind of the step, for a policy with actions: the step was sampled after the prompt of that kind, and ``logps`` are those after
    it; empty without actions."""

    @property
    def probability(self) -> float:
        """Probability of the whole step when it was sampled, in [0, 1]; 0 without tokens."""
        if not self.token_ids:
            return 0.0
        return min(math.exp(math.fsum(self.logps if self.sampling_logps is None else self.sampling_logps)), 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Spending caps of one search of one problem."""

    num_simulations: int = 32
    """Select-expand-evaluate-backup passes, >= 1. Sampling and beam methods count one expansion as one simulation."""
    max_tokens: int | None = None
    """Generated tokens over the whole tree; None is no cap. Once the cap is reached, nothing more is requested. A wave that would exceed
    it is shortened, so the overshoot is below one wave of steps."""
    exact_tokens: bool = False
    """Whether ``max_tokens`` is never exceeded. The last waves are smaller then, their samples may be cut, and a search ends when less is
    left than a mean sample takes. Not for trees to train on: a cut solution looks wrong."""
    max_calls: int | None = None
    """Requests to the policy; None is no cap. Once the cap is reached, nothing more is requested. Rollouts follow the requests of their own
    wave, so they may exceed the cap."""
    max_seconds: float | None = None
    """Seconds since the search of the problem began, > 0, checked before each wave except the first; None is no cap. The cap depends on the
    speed and load of the machine, so a search that ends this way cannot be replayed."""
    max_depth: int = 16
    """Steps from the root to the deepest node, >= 1."""
    max_step_tokens: int = 256
    """Tokens of one step, >= 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """The origin of a tree. It is stored with the tree and copied to every row made from it."""

    round: int
    """Round of the loop, 0 for the warm-up and for searches outside a run."""
    policy_version: int
    """Round whose training produced the policy that sampled the tree."""
    scorer_version: int | None
    """Round whose training produced the PRM that scored it; None without a PRM."""
    seed: int
    """Run seed, >= 0."""
    config_hash: str
    """Hash of the resolved configuration, 16 hexadecimal digits."""
    renderer_hash: str
    """Hash of the prompt renderer. Training refuses rows with another hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeRecord:
    """A finished search tree in flat form: node i is entry i of every list, the root is node 0, parents come before children.

    Example: a root with two one-token children, the second terminal and right, has ``parents=[-1, 0, 0]``, ``depths=[0, 1, 1]``,
    ``token_ids=[[], [7], [9]]`` and ``outcomes=[None, None, 1.0]``.
    """

    problem_id: str
    """Key of the problem."""
    question: str
    """The question, verbatim."""
    prompt_ids: list[int]
    """The rendered prompt. The models saw exactly prompt_ids and the token_ids along a path."""
    method: str
    """Name of the search method."""
    parents: list[int]
    """Parent index, -1 for the root."""
    depths: list[int]
    """Steps from the root."""
    token_ids: list[list[int]]
    """The step that leads into each node; empty for the root."""
    logps: list[list[float]]
    """Log-probability of each of those tokens under the policy at temperature 1."""
    texts: list[str]
    """The step as text."""
    priors: list[float]
    """Prior probability of the edge into the node among its siblings, in [0, 1]; 1 for the root."""
    scores: list[float | None]
    """PRM score of the step, in [0, 1]; None when not scored."""
    visits: list[int]
    """Simulations that passed through the node."""
    values: list[float | None]
    """Mean backed-up return; None while unvisited."""
    stop_reasons: list[str]
    """StopReason of the step; STEP for the root."""
    answers: list[str | None]
    """Final answer of a terminal; None elsewhere, and if no answer could be read."""
    outcomes: list[float | None]
    """In label mode 1.0 for right terminals, less for the others and for truncated nodes (0.0, or the partial credit); None elsewhere, and
    always in solve mode."""
    generated_tokens: int
    """Sampled tokens, including discarded duplicates and rollouts."""
    policy_calls: int
    """Requests to the policy: expansions and rollouts."""
    scored_tokens: int
    """Tokens of the steps sent to the PRM, including those of rollouts."""
    num_simulations: int
    """Simulations done."""
    provenance: Provenance
    """What produced the tree."""
    schema_version: int = TREE_SCHEMA_VERSION
    """Stored form."""
    given_ids: list[list[int]] = field(default_factory=list)
    """The observation after each node's step: tokens that the policy did not sample. No list at all is a tree without observations."""
    given_texts: list[str] = field(default_factory=list)
    """The observations as text."""
    qvalues: list[float | None] = field(default_factory=list)
    """Worth of each node's step: the reward of its edge plus the discounted value; None while unvisited. No list at all is a search without
    rewards and discount, in which these are ``values``."""
    actions: list[str] = field(default_factory=list)
    """Kind of each node's step; empty for the root. No list at all is a search without actions."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as nested plain containers, for JSON and Parquet."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "TreeRecord":
        """Rebuild a record from ``to_dict``'s form."""
        return cls(**{**row, "provenance": Provenance(**row["provenance"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Counts of the samples that a policy failed to return."""

    num_samples: int = 0
    """Requested samples, including those of rollouts."""
    num_failed: int = 0
    """Samples that ended with an error, even after some steps."""
    first_message: str | None = None
    """Message of the first failed sample, in the order of the requests; None without failures."""

    @classmethod
    def of(cls, num_samples: int, messages: Sequence[str | None]) -> "Failures":
        """Return the failures among ``num_samples`` samples, given the message of each failed one."""
        first = (messages[0] or "no reason given") if messages else None
        return cls(num_samples=num_samples, num_failed=len(messages), first_message=first)

    @property
    def all_failed(self) -> bool:
        """Whether samples were requested and every one failed."""
        return 0 < self.num_samples == self.num_failed

    def sentence(self) -> str:
        """Return the count and the first message as a sentence."""
        share = "all" if self.all_failed else f"{self.num_failed} of"
        return f"{share} {self.num_samples} samples failed, the first with: {self.first_message}"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dictionary, for JSON."""
        return asdict(self)

    @classmethod
    def sum(cls, parts: Iterable["Failures"]) -> "Failures":
        """Add the failures of several searches, with the first message found."""
        parts = list(parts)
        return cls(
            num_samples=sum(part.num_samples for part in parts),
            num_failed=sum(part.num_failed for part in parts),
            first_message=next((part.first_message for part in parts if part.first_message is not None), None),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The result of a search for one problem."""

    problem_id: str
    """Key of the problem."""
    answer: str | None
    """The final answer that the answer rule chose; None if no terminal has a readable answer."""
    answer_node: int | None
    """The terminal that represents the answer (for votes, its best-scored supporter); None without an answer."""
    votes: dict[str, float]
    """Weight of every distinct answer under the answer rule, descending."""
    stop_reason: StopReason
    """Why the search ended."""
    anytime: tuple[tuple[int, str | None], ...]
    """(generated tokens so far, answer under the rule) after each wave, oldest first."""
    tree: TreeRecord
    """The searched tree."""
    failures: Failures = Failures()
    """Failed samples of the policy."""

    @property
    def confidence(self) -> float | None:
        """Share of the votes that the answer has, in [0, 1]; None without an answer, or if nothing has weight."""
        total = sum(self.votes.values())
        return None if self.answer is None or total <= 0 else self.votes.get(self.answer, 0.0) / total


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A graded final answer."""

    correct: bool
    """Whether the answer counts as right."""
    reason: str
    """The reason in a few words: ``exact match``, ``equivalent``, ``differs``, ``unreadable``, ``timeout``."""
    credit: float | None = None
    """Partial credit, in [0, 1]; None is all or nothing."""

    def __post_init__(self) -> None:
        if self.credit is not None and not 0.0 <= self.credit <= 1.0:
            raise ValueError(f"credit must be in [0, 1]: got {self.credit!r}")

    @property
    def outcome(self) -> float:
        """What a tree stores of it: 1.0 if it is right, else the credit, or 0.0 without one."""
        return 1.0 if self.correct else min(self.credit or 0.0, MAX_PARTIAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One full solution for supervised fine-tuning, or the revision of a wrong one."""

    problem_id: str
    prompt_ids: list[int]
    """The rendered prompt and, for a revision, the wrong steps after it. It carries no loss."""
    completion_ids: list[int]
    """All steps, concatenated. They carry the loss."""
    prompt: str
    """The question and, for a revision, the wrong steps after it."""
    completion: str
    """The steps as text."""
    mean_value: float
    """Mean node value along the right path, in [0, 1]."""
    provenance: Provenance
    completion_given: list[bool] = field(default_factory=list)
    """Whether each token of ``completion_ids`` was given instead of sampled, and so carries no loss; empty if none was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftTarget:
    """One step with its share of a search's distribution over the steps after a prefix."""

    problem_id: str
    prompt_ids: list[int]
    """The rendered prompt and the earlier steps. It carries no loss."""
    completion_ids: list[int]
    """The step."""
    weight: float
    """Its share, in (0, 1]; those of all steps after the prefix sum to 1."""
    prompt: str
    """The question and the earlier steps as text."""
    completion: str
    """The step as text."""
    provenance: Provenance
    """Of its tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """Two continuations of one prefix, one of them preferred: sibling steps, or whole solutions."""

    problem_id: str
    prompt_ids: list[int]
    """The rendered prompt and the steps that both share. It carries no loss."""
    chosen_ids: list[int]
    """The preferred step, or solution."""
    rejected_ids: list[int]
    """The other one."""
    prompt: str
    """The question and the shared steps as text."""
    chosen: str
    rejected: str
    chosen_value: float
    """Node value of the preferred step, in [0, 1]."""
    rejected_value: float
    """Node value of the other step; chosen_value - rejected_value is the margin."""
    depth: int
    """Depth of the two siblings, >= 1; 1 for whole solutions."""
    provenance: Provenance
    """Provenance of the preferred one's tree."""
    chosen_visits: int = 0
    """Simulations that passed through the preferred step (for a solution, its last step); 0 if unknown."""
    rejected_visits: int = 0
    """The same for the other step."""
    chosen_logps: list[float] = field(default_factory=list)
    """Log-probability of each token of ``chosen_ids`` under the policy that sampled it; empty if unknown."""
    rejected_logps: list[float] = field(default_factory=list)
    """The same for ``rejected_ids``."""
    agreement: float | None = None
    """Share of the sibling pairs here that two process reward models rank alike, in [0, 1]; None if unknown."""
    uncertainty: float | None = None
    """Uncertainty of the order of the two, given the graded leaves, in bits: 0 is certain, 1 is open; None if unknown."""
    chosen_given: list[bool] = field(default_factory=list)
    """Whether each token of ``chosen_ids`` was given instead of sampled; empty if none was. The log-probability of such a token is 0."""
    rejected_given: list[bool] = field(default_factory=list)
    """The same for ``rejected_ids``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedRow:
    """A continuation that is good or bad by itself: a step, or a whole solution."""

    problem_id: str
    prompt_ids: list[int]
    """The rendered prompt and the earlier steps. It carries no loss."""
    completion_ids: list[int]
    """The step, or the solution."""
    good: bool
    """The verdict."""
    value: float
    """Value of the continuation, in [0, 1]."""
    prompt_value: float
    """Value of the node that it continues, in [0, 1]. For a whole solution: the share of right solutions of its problem."""
    prompt: str
    """The question and the earlier steps as text."""
    completion: str
    """The step, or the solution, as text."""
    logps: list[float]
    """Log-probability of each token of ``completion_ids`` under the policy that sampled it."""
    provenance: Provenance
    """Of its tree."""
    completion_given: list[bool] = field(default_factory=list)
    """Whether each token of ``completion_ids`` was given instead of sampled; empty if none was. The log-probability of such a token is
    0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageRow:
    """A continuation with the advantage of each of its tokens: a whole solution, or a step."""

    problem_id: str
    prompt_ids: list[int]
    """The rendered prompt and, for a step, the earlier steps. It carries no loss."""
    completion_ids: list[int]
    """The solution, or the step."""
    advantages: list[float]
    """Advantage of each token of ``completion_ids``; 0 for a given one."""
    logps: list[float]
    """Log-probability of each token under the policy that sampled it; 0 for a given one."""
    prompt: str
    """The question and the earlier steps as text."""
    completion: str
    """The solution, or the step, as text."""
    provenance: Provenance
    """Of its tree."""
    completion_given: list[bool] = field(default_factory=list)
    """Whether each token of ``completion_ids`` was given instead of sampled; empty if none was."""
    staleness: int = 0
    """Updates of the policy between the search that sampled the row and the first one that learned from it, in training during the search;
    0 where rows are made before the training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueRow:
    """One root-to-leaf path with a target at the end of every learned step.

    If several paths share a node, only one of them carries its target, so that every node counts once.
    """

    problem_id: str
    prompt_ids: list[int]
    """The rendered prompt."""
    step_ids: list[list[int]]
    """The steps of the path, in order."""
    targets: list[float | None]
    """Value target in [0, 1] for each step; None if the step is context only."""
    prompt: str
    """The question."""
    steps: list[str]
    """The steps as text."""
    provenance: Provenance
    given_ids: list[list[int]] = field(default_factory=list)
    """The observation after each step: tokens that the policy did not sample, context of the later steps. No list at all is a path without
    observations."""
    given_texts: list[str] = field(default_factory=list)
    """The observations as text."""


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on nothing else.

    Seeds are derived from names (run seed, round, problem id, node). So a result never depends on the number of problems in flight.
    """
    text = "\x1f".join(str(part) for part in parts)
    return _seed_of(hashlib.blake2b(text.encode(), digest_size=8))


def seed_family(*parts: int | str) -> Callable[..., int]:
    """Return a function of further parts that equals ``derive_seed`` of all parts, without hashing the first ones again."""
    stem = hashlib.blake2b("".join(f"{part}\x1f" for part in parts).encode(), digest_size=8)

    def derive(*more: int | str) -> int:
        state = stem.copy()
        state.update("\x1f".join(map(str, more)).encode())
        return _seed_of(state)

    return derive


def _seed_of(state: "hashlib.blake2b") -> int:
    return int.from_bytes(state.digest(), "big") >> 1
