"""The axes of a search method, their members and their defaults.

Every method runs through the same loop of the engine (select, propose, score, insert, back up) and is a point on these axes.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from stepladder.errors import ConfigError, right_name
from stepladder.mcts.answer_rules import ANSWER_RULES
from stepladder.mcts.backup import BACKUP_RULES
from stepladder.mcts.descent import DESCENTS, NORMALISATIONS
from stepladder.mcts.qvalues import AGGREGATIONS, UNVISITED_RULES
from stepladder.mcts.resample import RESAMPLE_WEIGHTS
from stepladder.mcts.selection import PRIORS

SELECTIONS = (*DESCENTS, "best-first", "depth-first", "beam", "resample", "sample")
EVALUATIONS = ("children", "leaf", "best")
TERMINAL_RULES = ("skip", "revisit")
ESTIMATES = ("step", "path")
REWARDS = ("none", "gain")
MERGE_RULES = ("tokens", "text")
ROLLOUT_RULES = ("children", "best")
ROLLOUT_VALUES = ("last", "best", "agreement")
CUT_STEPS = ("end", "continue")
COMMIT_RULES = ("visits", "value")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchMethod:
    """A search method.

    Raises:
        ConfigError: On construction, if a value is unknown or impossible.
    """

    name: str
    """The preset's name; stored with every tree."""
    description: str
    """What the method does, in one sentence for the user."""
    selection: str = "puct"
    """``puct`` (AlphaZero), ``puct-mctx`` and ``puct-muzero`` (MuZero's two constants, with or without the node's own evaluation among its
    visits), ``uct`` and ``gumbel`` (sequential halving at the root, the improved policy below): descend from the root. ``best-first``: the
    best open leaf anywhere; ``depth-first``: the best of the deepest. ``beam``: the best nodes of the deepest level. ``resample``: nodes of
    the newest level drawn by weight, with replacement (particles). ``sample``: always the root, from which whole solutions are drawn."""
    c: float = 1.25
    """Exploration constant of puct and uct, c_1 of puct-mctx, >= 0."""
    c_base: float = 19652.0
    """c_2 of puct-mctx and puct-muzero, > 0."""
    max_considered: int = 16
    """Children of the root that gumbel considers, >= 1; a whole number."""
    value_scale: float = 0.1
    """Weight of values against logits in gumbel, >= 0."""
    maxvisit_init: float = 50.0
    """Visits that gumbel's weight of values starts from, >= 0."""
    rescale_values: bool = True
    """Whether gumbel rescales values to [0, 1] between the least and the greatest sibling."""
    gumbel_scale: float = 1.0
    """Factor of the Gumbel noise at the root, >= 0; 0 is deterministic."""
    groups: int = 1
    """Subtrees, divided among the children of the root, that a beam keeps apart, >= 1: each goes on with wave / groups nodes of its own. A
    divisor of wave."""
    resample_by: str = "odds"
    """Weight of a particle of value v in resample: ``odds``, (v / (1 - v))^(1 / T), or ``value``, exp(v / T); v is 0.5 where unknown. Those
    that ended stay in the draw."""
    resample_temperature: float = 1.0
    """T of these weights, > 0."""
    critic_mix: float = 0.0
    """puct and uct select by (1 - critic_mix) * the edge's value + critic_mix * the child's own estimate, in [0, 1]."""
    min_value: float = 0.0
    """best-first, depth-first: leaves with a lower value are never expanded, >= 0."""
    normalise: str = "none"
    """Edge values as they are (``none``) or rescaled between the parent's and the siblings' (``siblings``), where unvisited ones are 0."""
    unvisited: str = "raw"
    """Value of a child without visits: ``inf``, ``zero``, ``parent`` or ``raw`` (its own estimate)."""
    unvisited_bonus: float = 0.0
    """Added to the value of a child without visits, >= 0."""
    prior: str = "frequency"
    """Prior of a child among its siblings: ``uniform``, ``ones`` (1 for each), ``frequency`` (share of merged samples), ``mean-logp`` or
    ``norm-logp`` (softmax of the step's mean log-probability, of its sum / L^1.25), ``exp-mean-logp`` or ``exp-norm-logp`` (their
    exponentials, which do not sum to 1). In sampling methods always the share of the draws."""
    prior_temperature: float = 1.0
    """Divides the logarithms of the priors, > 0: higher is flatter."""
    root_noise: float = 0.0
    """Share of Dirichlet noise in the priors of the root's children, in [0, 1]."""
    root_noise_alpha: float = 0.3
    """Concentration of that noise, > 0."""
    num_children: int = 4
    """Samples per expansion (K), >= 1; equal samples become one child."""
    merge: str = "tokens"
    """Siblings that become one child: those of equal ``tokens``, or of equal ``text`` up to white space, whose first tokens then stand for
    all. Sampling methods always compare tokens."""
    root_num_children: int | None = None
    """Samples at the root; None is num_children, and for beams and resample wave * num_children."""
    share: bool = False
    """A beam's leaves share ``wave`` samples, as many as it has beams running, evenly and at most num_children each, instead of having
    num_children each: nothing is sampled to be pruned, and a beam that ends leaves its share to the others."""
    branch_entropy: float | None = None
    """Only a leaf whose own step was this uncertain branches: one whose tokens' mean surprisal (an estimate of their entropy), in nats, is
    lower goes on by one sample, >= 0. None always branches. The root always does; not in sampling."""
    temperature: float = 1.0
    """Sampling temperature, >= 0; 0 is greedy."""
    wave: int = 1
    """Leaves per tree in flight at once (W), >= 1: width of a beam, particles of resample, draws per request of a sampling method."""
    evaluation: str = "children"
    """What a simulation brings back. ``children``: every new child starts with one visit worth its own value, and the leaf and its
    ancestors get one visit worth the mean over the samples. ``leaf``: the leaf and its ancestors get one visit worth the leaf's own value
    (AlphaZero); children start unvisited. ``best``: the best new child, the one that was rolled out if any was, starts with one visit
    worth its value, and the leaf and its ancestors get one visit worth the same. Sampling methods back up every draw from its last node."""
    rollouts: int = 0
    """Continuations sampled from a new child to value it, >= 0; they cost tokens and calls and leave no nodes. Not in sampling."""
    rollout_steps: int | None = None
    """Steps of a rollout, >= 1: one that did not end by then is worth its last step's score (lookahead); None goes on to the end."""
    rollout_temperature: float = 1.0
    """Sampling temperature of rollouts, >= 0; 0 is greedy, and one is enough."""
    rollout_mix: float = 1.0
    """A child with rollouts is worth (1 - rollout_mix) * its own estimate + rollout_mix * their mean, in [0, 1]."""
    rollout_of: str = "children"
    """Rollouts start from all new ``children`` that can be expanded, or from the ``best`` new child alone, by its own score, if it can."""
    rollout_value: str = "last"
    """What rollouts say: the mean over what each is worth at its end (``last``) or at the ``best`` step on its way, or the ``agreement`` of
    their answers, the share of the most frequent one, which needs no PRM; a child that ended is then worth the share of its answer among
    those of its siblings and their rollouts. In label mode ``agreement`` is ``last``."""
    estimate: str = "step"
    """What a node is worth by itself: its ``step``'s score, or the ``path``'s, by ``aggregation``."""
    ahead: float = 0.0
    """Weight of a path's last score h beside the aggregated score g of all of it: a path scores (g + ahead * h) / (1 + ahead), >= 0. With
    ``estimate`` = ``path``, best-first goes by A*'s g + ahead * h."""
    reward: str = "none"
    """Reward of a step: ``none``, or ``gain`` (its estimate less its parent's, 0.5 standing for an unknown parent's). Not in
    sampling."""
    cut_steps: str = "end"
    """A step that is cut at ``max_step_tokens`` is the ``end`` of its solution, or a segment after which it may ``continue``."""
    backup: str = "mean"
    """``mean`` of all returns, ``min`` (the mean of returns that are no higher than the weakest estimate on their way), or from the
    children: ``child-mean`` (weighted by visits), ``uniform-child-mean``, ``max``. Sampling methods always take the mean."""
    discount: float = 1.0
    """Factor per step on the way up, in (0, 1]."""
    terminals: str = "skip"
    """``skip``: a terminal is never selected again, and simulations go where something can be expanded. ``revisit``: it may be, costs no
    tokens, and its value is backed up once more (AlphaZero). Either way the search ends when nothing can be expanded."""
    stop_value: float | None = None
    """The search ends once a solution with an answer scores at least this, in [0, 1]; None never."""
    stop_at_goal: bool = False
    """best-first, depth-first: the search ends once the leaf to go on with is worth no more than the best solution's path scores."""
    stop_agreement: int | None = None
    """The search ends once so many of the last ``stop_window`` waves lead to one answer, >= 1; None never."""
    stop_window: int = 10
    """Waves that ``stop_agreement`` looks back on, >= 1."""
    commit: int | None = None
    """Simulations after which the search moves to the best child and goes on from there with the subtree kept, >= 1; None searches from
    the root all the time."""
    commit_by: str = "visits"
    """The best child to move to: most ``visits``, or highest ``value``; the first of equals."""
    answer_rule: str = "weighted-vote"
    """``best``, ``majority``, ``weighted-vote``, ``path-vote`` or ``robust-path``; see ``AnswerTally``."""
    aggregation: str = "last"
    """Score of a trajectory from its steps' scores: ``last``, ``min``, ``mean``, ``product``, ``geometric-mean`` or another of
    ``aggregate_scores``. Estimates are kept in single precision: with ``estimate`` = ``path``, products below 1e-38 are all alike."""

    def __post_init__(self) -> None:
        for name, members in _FAMILIES.items():
            _check_member(self.name, name, getattr(self, name), members)
        for name, least in _COUNTS.items():
            _check_count(self.name, name, getattr(self, name), least=least)
        for name, rule, holds in _RANGES:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not holds(value):
                raise ConfigError(f"method {self.name!r}: {name} must be a number {rule}: got {value!r}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"method {self.name!r}: {name} must be true or false: got {getattr(self, name)!r}")
        self._check_together()

    def _check_together(self) -> None:
        if self.wave % self.groups or (self.groups > 1 and self.selection != "beam"):
            raise ConfigError(
                f"method {self.name!r}: groups must divide the wave of a beam: got groups {self.groups}, wave {self.wave}, "
                f"selection {self.selection!r}"
            )
        if self.selection == "gumbel" and self.evaluation != "leaf":
            raise ConfigError(
                f"method {self.name!r}: gumbel counts visits from zero and needs evaluation 'leaf': got {self.evaluation!r} "
                "-- set evaluation = 'leaf'"
            )
        self._check_selection()
        if self.rollouts and self.samples_solutions:
            raise ConfigError(f"method {self.name!r}: rollouts value the children of a tree: got {self.rollouts} with selection 'sample'")
        if self.rollouts > 1 and self.rollout_temperature == 0:
            raise ConfigError(f"method {self.name!r}: rollouts at temperature 0 are all equal: got {self.rollouts} -- set rollouts = 1")
        if self.stop_agreement is not None and self.stop_agreement > self.stop_window:
            raise ConfigError(
                f"method {self.name!r}: stop_agreement must be at most stop_window: got {self.stop_agreement} of {self.stop_window}"
            )

    def _check_selection(self) -> None:
        """Check what needs a certain selection.

        Raises:
            ConfigError: If the selection is another one.
        """
        needs = {
            "commit needs a selection that descends from the root": self.commit is not None and not self.descends,
            "critic_mix needs puct or uct": self.critic_mix > 0 and (not self.descends or self.selection == "gumbel"),
            "share needs a beam": self.share and self.selection != "beam",
            "reward needs steps, not whole solutions": self.reward != "none" and self.samples_solutions,
            "branch_entropy needs steps, not whole solutions": self.branch_entropy is not None and self.samples_solutions,
            "stop_at_goal needs best-first or depth-first": self.stop_at_goal and self.selection not in ("best-first", "depth-first"),
        }
        for rule, broken in needs.items():
            if broken:
                raise ConfigError(f"method {self.name!r}: {rule}: got {self.selection!r}")
        if self.selection == "resample" and self.temperature == 0:
            raise ConfigError(f"method {self.name!r}: resample draws equal particles apart again: got temperature 0 -- raise it")

    @property
    def descends(self) -> bool:
        """Whether selection follows edges from the root (or the committed node) down."""
        return self.selection in DESCENTS

    def settings(self) -> dict[str, Any]:
        """Return the axes that are not at their defaults."""
        axes = [axis for axis in fields(self) if axis.name not in ("name", "description")]
        return {axis.name: getattr(self, axis.name) for axis in axes if getattr(self, axis.name) != axis.default}

    @property
    def samples_solutions(self) -> bool:
        """Whether an expansion draws whole solutions instead of single steps."""
        return self.selection == "sample"

    @property
    def root_samples(self) -> int:
        """Samples of the root's expansion."""
        if self.root_num_children is not None:
            return self.root_num_children
        return self.num_children * (self.wave if self.selection in ("beam", "resample") else 1)


_FAMILIES = {
    "selection": SELECTIONS,
    "normalise": NORMALISATIONS,
    "unvisited": UNVISITED_RULES,
    "prior": PRIORS,
    "evaluation": EVALUATIONS,
    "estimate": ESTIMATES,
    "merge": MERGE_RULES,
    "reward": REWARDS,
    "rollout_of": ROLLOUT_RULES,
    "rollout_value": ROLLOUT_VALUES,
    "resample_by": RESAMPLE_WEIGHTS,
    "cut_steps": CUT_STEPS,
    "commit_by": COMMIT_RULES,
    "backup": BACKUP_RULES,
    "terminals": TERMINAL_RULES,
    "answer_rule": ANSWER_RULES,
    "aggregation": AGGREGATIONS,
}
_COUNTS = {
    "num_children": 1,
    "wave": 1,
    "root_num_children": 1,
    "max_considered": 1,
    "groups": 1,
    "stop_agreement": 1,
    "stop_window": 1,
    "commit": 1,
    "rollouts": 0,
    "rollout_steps": 1,
}
"""Least value of every whole number."""
_OPTIONAL = ("root_num_children", "stop_agreement", "commit", "rollout_steps", "stop_value", "branch_entropy")
_FLAGS = ("rescale_values", "share", "stop_at_goal")
_RANGES = (
    ("c", ">= 0", lambda value: value >= 0),
    ("value_scale", ">= 0", lambda value: value >= 0),
    ("maxvisit_init", ">= 0", lambda value: value >= 0),
    ("gumbel_scale", ">= 0", lambda value: value >= 0),
    ("min_value", ">= 0", lambda value: value >= 0),
    ("resample_temperature", "> 0", lambda value: value > 0),
    ("critic_mix", "in [0, 1]", lambda value: 0 <= value <= 1),
    ("branch_entropy", ">= 0", lambda value: value >= 0),
    ("ahead", ">= 0", lambda value: value >= 0),
    ("unvisited_bonus", ">= 0", lambda value: value >= 0),
    ("prior_temperature", "> 0", lambda value: value > 0),
    ("root_noise", "in [0, 1]", lambda value: 0 <= value <= 1),
    ("root_noise_alpha", "> 0", lambda value: value > 0),
    ("rollout_temperature", ">= 0", lambda value: value >= 0),
    ("rollout_mix", "in [0, 1]", lambda value: 0 <= value <= 1),
    ("stop_value", "in [0, 1]", lambda value: 0 <= value <= 1),
    ("c_base", "> 0", lambda value: value > 0),
    ("temperature", ">= 0", lambda value: value >= 0),
    ("discount", "in (0, 1]", lambda value: 0 < value <= 1),
)


def _check_member(method: str, name: str, value: Any, members: tuple[str, ...]) -> None:
    if value not in members:
        raise ConfigError(f"method {method!r}: {name} must be one of its choices: got {value!r} -- {right_name(value, members)}")


def _check_count(method: str, name: str, value: Any, *, least: int) -> None:
    if value is None and name in _OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"method {method!r}: {name} must be a whole number >= {least}: got {value!r}")
