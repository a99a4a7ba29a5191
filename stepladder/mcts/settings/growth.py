"""Growth of a tree: the samples after a leaf, the worth of its new nodes, and the return that goes to the root."""

from dataclasses import dataclass, field
from typing import ClassVar

from stepladder.mcts.backup import BACKUP_RULES
from stepladder.mcts.priors import PRIORS
from stepladder.mcts.settings.setting_checks import check, check_choice, check_count, check_number

CUT_STEPS = ("end", "continue")
EVALUATIONS = ("children", "leaf", "best", "ends")
MERGE_RULES = ("tokens", "text")
REWARDS = ("none", "gain")
SIBLING_RULES = ("independent", "distinct")
WIDENINGS = ("power", "stay", "gen")
ROLLOUT_RULES = ("children", "best")
ROLLOUT_VALUES = ("last", "best", "agreement")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the policy is sampled."""

    temperature: float = 1.0
    """Sampling temperature, >= 0; 0 is greedy."""
    cut_steps: str = "end"
    """A step that is cut at ``max_step_tokens`` is the ``end`` of its solution, or a segment after which it may ``continue``."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, ">= 0")
        check_choice("cut_steps", self.cut_steps, CUT_STEPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RootNoise:
    """Dirichlet noise in the priors of the root's children."""

    SWITCH: ClassVar[str] = "root_noise"
    OFF: ClassVar[float] = 0.0

    root_noise: float
    """Share of Dirichlet noise in the priors of the root's children, in [0, 1]; 0 is none."""
    root_noise_alpha: float = 0.3
    """Concentration of that noise, > 0."""

    def __post_init__(self) -> None:
        check_number("root_noise", self.root_noise, "in [0, 1]")
        check_number("root_noise_alpha", self.root_noise_alpha, "> 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Priors:
    """Prior probabilities of siblings."""

    prior: str = "frequency"
    """Prior of a child among its siblings. ``uniform``: equal shares. ``ones``: 1 for each. ``frequency``: the share of merged samples.
    ``mean-logp``, ``sum-logp`` and ``norm-logp``: softmax of the log-probability: its mean over the tokens, its sum, or sum / L^1.25.
    ``exp-mean-logp`` and ``exp-norm-logp``: the exponentials of these, which do not sum to 1."""
    prior_temperature: float = 1.0
    """Divides the logarithms of the priors, > 0: higher is flatter. Not for ``uniform`` and ``ones``."""
    noise: RootNoise | None = None
    """Noise at the root; None is none."""

    def __post_init__(self) -> None:
        check_choice("prior", self.prior, PRIORS)
        check_number("prior_temperature", self.prior_temperature, "> 0")
        varies = self.prior not in ("uniform", "ones")
        check(varies or self.prior_temperature == 1, f"prior_temperature needs a prior that varies: got prior {self.prior!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """Continuations that value new children. They cost tokens and calls and leave no nodes."""

    SWITCH: ClassVar[str] = "rollouts"
    OFF: ClassVar[int] = 0

    rollouts: int
    """Continuations sampled from a new child to value it, >= 0; 0 is none."""
    rollout_steps: int | None = None
    """Steps of a rollout, >= 1. An unfinished rollout is worth its last step's score (lookahead). None continues to the end."""
    rollout_temperature: float = 1.0
    """Sampling temperature of rollouts, >= 0; 0 is greedy, and one is enough."""
    rollout_mix: float = 1.0
    """A child with rollouts is worth (1 - rollout_mix) * its own estimate + rollout_mix * their mean, in [0, 1]."""
    rollout_of: str = "children"
    """Rollouts start from all new ``children`` that can be expanded, or from the ``best`` new child alone, by its own score, if it can."""
    rollout_value: str = "last"
    """What rollouts say. ``last``: the mean over what each is worth at its end. ``best``: the same at the best step on its way.
    ``agreement``: the share of the most frequent of their answers, which needs no PRM; a child that ended is then worth the share of its
    answer among those of its siblings and their rollouts. In label mode ``agreement`` is ``last``."""

    def __post_init__(self) -> None:
        is_count = isinstance(self.rollouts, int) and not isinstance(self.rollouts, bool) and self.rollouts >= 1
        check(is_count, f"rollouts must be a whole number >= 0, where 0 is none: got {self.rollouts!r}")
        check_count("rollout_steps", self.rollout_steps, optional=True)
        check_number("rollout_temperature", self.rollout_temperature, ">= 0")
        check_number("rollout_mix", self.rollout_mix, "in [0, 1]")
        check_choice("rollout_of", self.rollout_of, ROLLOUT_RULES)
        check_choice("rollout_value", self.rollout_value, ROLLOUT_VALUES)
        differ = self.rollouts == 1 or self.rollout_temperature > 0
        check(differ, f"rollouts at temperature 0 are all equal: got {self.rollouts} -- set rollouts = 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Widening:
    """A node that has children can be sampled again. New samples join the children that exist; equal ones are one child."""

    SWITCH: ClassVar[str] = "widen"
    OFF: ClassVar[str] = "once"

    widen: str
    """When a node that has children is sampled again. ``once``: never. ``power``: a descent stops at a node, and best-first takes it among
    the leaves, while it has had fewer than widen_base * N^widen_power samples, N its visits (progressive widening). ``stay``: a descent
    stops at a node whose value lies in (0, stay_low] or [stay_high, 1). ``gen``: sampling a
    node again always competes with everything else, by best-first's
    priority or the draws of ab-mcts. Where nothing else is left, nodes are sampled again anyway.
    """
    widen_base: float = 2.0
    """Samples of a node with one visit under ``power``, > 0."""
    widen_power: float = 0.5
    """Exponent of the visits under ``power``, in (0, 1]."""
    stay_low: float = 0.25
    """Upper bound of the low values at which ``stay`` stays, in [0, 1]; 0 switches them off."""
    stay_high: float = 0.75
    """Lower bound of the high values at which ``stay`` stays, in [0, 1]; 1 switches them off."""
    again_samples: int = 1
    """Samples when a node is sampled again, >= 1."""
    least_unseen: float = 0.01
    """A node is never sampled again once its children leave less than this share of the policy's probability, in [0, 1]. The share follows
    from the log-probabilities of the samples."""

    def __post_init__(self) -> None:
        check_choice("widen", self.widen, (self.OFF, *WIDENINGS))
        check_number("widen_base", self.widen_base, "> 0")
        check_number("widen_power", self.widen_power, "in (0, 1]")
        check_number("stay_low", self.stay_low, "in [0, 1]")
        check_number("stay_high", self.stay_high, "in [0, 1]")
        check_count("again_samples", self.again_samples)
        check_number("least_unseen", self.least_unseen, "in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """A leaf is expanded by single steps, its children."""

    num_children: int = 4
    """Samples per expansion (K), >= 1; equal samples become one child."""
    root_num_children: int | None = None
    """Samples at the root, >= 1. None is num_children, and for beams and particles wave * num_children."""
    merge: str = "tokens"
    """Siblings that become one child: those of equal ``tokens``, or of equal ``text`` up to white space, whose first tokens then stand for
    all."""
    siblings: str = "independent"
    """Samples after a node: ``independent``, so that likely ones come again and are merged, or ``distinct``: drawn without replacement,
    where the backend can (``transformers`` does; the others sample independently). Those of one request are
    drawn one after another."""
    widening: Widening | None = None
    """When a node is sampled again; None is once."""
    branch_entropy: float | None = None
    """Uncertainty of a leaf's own step from which on the leaf branches, >= 0. It is measured as the mean surprisal of the step's tokens in
    nats, an estimate of their entropy. Below it the leaf gets one sample. None always branches, and so does the root."""
    priors: Priors = field(default_factory=Priors)
    """Prior probabilities of the children."""
    evaluation: str = "children"
    """What a simulation brings back. ``children``: every new child starts with one visit worth its own value, and the leaf and its
    ancestors get one visit worth the mean over the samples. ``leaf``: the leaf and its ancestors get one visit worth the leaf's own value
    (AlphaZero); children start unvisited. ``best``: the best new child, the one that was rolled out if any was, starts with one visit
    worth its value, and the leaf and its ancestors get one visit worth the same. ``ends``: every new child with a value starts with one
    visit worth it, and only ends with an answer are backed up, once each, when they are new."""
    rollouts: Rollouts | None = None
    """Rollouts that value new children in addition to their scores; None has none."""
    reward: str = "none"
    """Reward of a step: ``none``, or ``gain``, its estimate minus that of its parent (0.5 if unknown). With ``gain``, nodes bring back
    nothing else: an edge is worth the gain of its step and what is gained below, so that values are gains, about in [-1, 1]."""
    backup: str = "mean"
    """``mean`` of all returns, ``min`` (the mean of returns that are no higher than the weakest estimate on their way), or from the
    children: ``child-mean`` (weighted by visits), ``uniform-child-mean``, ``max``."""

    def __post_init__(self) -> None:
        check_count("num_children", self.num_children)
        check_count("root_num_children", self.root_num_children, optional=True)
        check_choice("merge", self.merge, MERGE_RULES)
        check_choice("siblings", self.siblings, SIBLING_RULES)
        check_number("branch_entropy", self.branch_entropy, ">= 0", optional=True)
        check_choice("evaluation", self.evaluation, EVALUATIONS)
        check_choice("reward", self.reward, REWARDS)
        check_choice("backup", self.backup, BACKUP_RULES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solutions:
    """A node is expanded by solutions from there on.

    Draws share their first steps if their tokens are equal. Every draw is backed up as a mean from its last node, and priors are the
    shares of the draws.
    """

    draw_steps: int | None = None
    """restart: steps of a draw, >= 1, after which it stops and can be gone on from. None draws to the end, and so does a search without a
    PRM, where nothing tells from which step to go on."""

    def __post_init__(self) -> None:
        check_count("draw_steps", self.draw_steps, optional=True)
