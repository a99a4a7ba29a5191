"""Descent: Monte-Carlo tree search, from the root down into the best-scored open slot of every node. The scores are in ``descent_kernels``.

Axes: b searches, B rows of trees, K child slots, W leaves per tree, S simulations of a schedule, P different schedules.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from stepladder.mcts.qvalues import UNVISITED_RULES
from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.settings.setting_checks import check, check_choice, check_count, check_flag, check_number
from stepladder.mcts.strategies.descent_kernels import NORMALISATIONS, DescentRule, descend, descent_rule
from stepladder.mcts.strategies.halving import halving_schedules, schedule_length
from stepladder.mcts.strategies.strategy import (
    NO_LEAF,
    TERMINAL_RULES,
    RunShape,
    SearchView,
    Selection,
    Strategy,
    check_ends,
    rows_of,
)
from stepladder.mcts.tree import Tree, reserve

COMMIT_RULES = ("visits", "value")
COUNTS = ("expansions", "descents")


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeValues:
    """Values of the edges into children, as puct and uct read them."""

    critic_mix: float = 0.0
    """puct and uct select by (1 - critic_mix) * the edge's value + critic_mix * the child's own estimate, in [0, 1]."""
    normalise: str = "none"
    """Edge values unchanged (``none``), or rescaled between the parent's and the siblings' values, 0 if unvisited (``siblings``)."""
    unvisited: str = "raw"
    """Value of a child without visits: ``inf``, ``zero``, ``parent`` or ``raw`` (its own estimate). Not with
    ``normalise`` = ``siblings``."""
    unvisited_bonus: float = 0.0
    """Added to the value of a child without visits, >= 0. Neither with ``normalise`` = ``siblings`` nor with ``unvisited`` = ``inf``."""

    def __post_init__(self) -> None:
        check_number("critic_mix", self.critic_mix, "in [0, 1]")
        check_choice("normalise", self.normalise, NORMALISATIONS)
        check_choice("unvisited", self.unvisited, UNVISITED_RULES)
        check_number("unvisited_bonus", self.unvisited_bonus, ">= 0")
        is_read = self.normalise == "none"
        check(is_read or self.unvisited == "raw", f"unvisited is not read with normalise = 'siblings': got {self.unvisited!r}")
        is_read &= self.unvisited != "inf"
        check(
            is_read or self.unvisited_bonus == 0,
            f"unvisited_bonus needs normalise = 'none' and a finite value of unvisited: got {self.unvisited_bonus}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Puct:
    """AlphaZero's rule."""

    TYPES: ClassVar[tuple[str, ...]] = ("puct",)

    type: str = "puct"
    """Name of the rule."""
    c: float = 1.25
    """Exploration constant of puct and uct, c_1 of puct-mctx and puct-muzero, >= 0."""
    values: EdgeValues = field(default_factory=EdgeValues)
    """What edges are worth to the rule."""

    def __post_init__(self) -> None:
        check_choice("type", self.type, self.TYPES)
        check_number("c", self.c, ">= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class MuZeroPuct:
    """MuZero's rule of two constants, with the node's own evaluation among its visits (``puct-mctx``) or without (``puct-muzero``)."""

    TYPES: ClassVar[tuple[str, ...]] = ("puct-mctx", "puct-muzero")

    type: str = "puct-muzero"
    """Name of the rule."""
    c: float = 1.25
    """Exploration constant of puct and uct, c_1 of puct-mctx and puct-muzero, >= 0."""
    c_base: float = 19652.0
    """c_2 of puct-mctx and puct-muzero, > 0."""
    values: EdgeValues = field(default_factory=EdgeValues)
    """What edges are worth to the rule."""

    def __post_init__(self) -> None:
        check_choice("type", self.type, self.TYPES)
        check_number("c", self.c, ">= 0")
        check_number("c_base", self.c_base, "> 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Uct:
    """Upper confidence bounds without priors."""

    TYPES: ClassVar[tuple[str, ...]] = ("uct",)

    type: str = "uct"
    """Name of the rule."""
    c: float = 1.25
    """Exploration constant of puct and uct, c_1 of puct-mctx and puct-muzero, >= 0."""
    values: EdgeValues = field(default_factory=EdgeValues)
    """What edges are worth to the rule."""

    def __post_init__(self) -> None:
        check_choice("type", self.type, self.TYPES)
        check_number("c", self.c, ">= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gumbel:
    """Sequential halving at the root, the improved policy below."""

    TYPES: ClassVar[tuple[str, ...]] = ("gumbel",)

    type: str = "gumbel"
    """Name of the rule."""
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

    def __post_init__(self) -> None:
        check_choice("type", self.type, self.TYPES)
        check_count("max_considered", self.max_considered)
        check_number("value_scale", self.value_scale, ">= 0")
        check_number("maxvisit_init", self.maxvisit_init, ">= 0")
        check_flag("rescale_values", self.rescale_values)
        check_number("gumbel_scale", self.gumbel_scale, ">= 0")


BoundRule = Puct | MuZeroPuct | Uct
EDGE_RULES: dict[str, type[BoundRule | Gumbel]] = {name: rule for rule in (Puct, MuZeroPuct, Uct, Gumbel) for name in rule.TYPES}
"""The rules that score edges, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commitment:
    """A search moves down the tree for good."""

    SWITCH: ClassVar[str] = "commit"
    OFF: ClassVar[None] = None

    commit: int
    """Simulations after which the search moves to the best child and continues there with its subtree, >= 1. None searches from
    the root all the time."""
    commit_first: int | None = None
    """The same before the first move, >= 1; None is as many as before any other."""
    commit_by: str = "visits"
    """The best child to move to: most ``visits``, or highest ``value``; the first of equals."""

    def __post_init__(self) -> None:
        check_count("commit", self.commit)
        check_count("commit_first", self.commit_first, optional=True)
        check_choice("commit_by", self.commit_by, COMMIT_RULES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent(Selection):
    """Descends from the root, or from the node that it has moved to, by the scores of the edges."""

    TYPES: ClassVar[tuple[str, ...]] = tuple(EDGE_RULES)
    WIDENS: ClassVar[tuple[str, ...]] = ("power", "stay")

    rule: BoundRule | Gumbel = field(default_factory=Puct)
    """How edges are scored."""
    commitment: Commitment | None = None
    """When the search moves down for good; None never."""
    terminals: str = "skip"
    """``skip``: a terminal is never selected again, and simulations go where something can be expanded. ``revisit``: it may be, costs no
    tokens, and its value is backed up once more (AlphaZero). ``once``: never selected again, but backed up when it is new, if it has an
    answer. The search always ends when nothing can be expanded."""
    count: str = "expansions"
    """A simulation is one of the ``expansions``, or one of the ``descents`` to an end: a descent goes on below the node that it expanded
    until nothing is open there. Descents need wave = 1."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("terminals", self.terminals, TERMINAL_RULES)
        check_choice("count", self.count, COUNTS)
        check(self.count == "expansions" or self.wave == 1, f"count = 'descents' is one descent at a time: got wave {self.wave}")

    @classmethod
    def of_type(cls, type_name: str, take: Callable[..., Any]) -> "Descent":
        """Make the record from settings by name; the type is that of the rule."""
        return take(cls, rule=take(EDGE_RULES[type_name], type=type_name))

    @property
    def type_name(self) -> str:
        """Name of the rule that scores edges."""
        return self.rule.type

    @property
    def revisits_terminals(self) -> bool:
        """Whether a terminal may be selected again."""
        return self.terminals == "revisit"

    @property
    def backs_up_ends(self) -> bool:
        """Whether an end with an answer is backed up when it is new."""
        return self.terminals == "once"

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check that ends enter once, and that gumbel finds its children unvisited."""
        check_ends(self.terminals, growth)
        if isinstance(self.rule, Gumbel) and isinstance(growth, Steps):
            check(
                growth.evaluation == "leaf",
                f"gumbel counts visits from zero and needs evaluation 'leaf': got {growth.evaluation!r} -- set evaluation = 'leaf'",
            )
            check(self.terminals != "once", "gumbel gives visits by its schedule: got terminals 'once' -- set terminals = 'revisit'")
            check(growth.widening is None, "gumbel compares the children of one expansion: got widen -- set widen = 'once'")

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        scores = GumbelScores(self.rule, run) if isinstance(self.rule, Gumbel) else BoundScores(self.rule, run)
        return DescentStrategy(scores, self.commitment, run, to_ends=self.count == "descents")


def select_descent(
    tree: Tree,
    rows: Int[np.ndarray, "b"],
    num_leaves: Int[np.ndarray, "b"],
    *,
    rule: DescentRule,
    starts: Int[np.ndarray, "b"] | None = None,
) -> Int[np.ndarray, "b W"]:
    """Select up to ``num_leaves`` leaves per row, one descent after another, and reserve them in the tree.

    A descent begins at the root, or at the row's node in ``starts``, follows the best-scored slot among those with an open leaf below and
    ends in a node without children, or in one that is to be sampled again. Nodes in flight are not open, so none to be expanded is selected
    twice; a row that runs out of open nodes gets fewer.

    Returns:
        The leaves in order of selection, ``NO_LEAF`` after the last one of a row.
    """
    waves = np.full((len(rows), max(int(num_leaves.max(initial=0)), 1)), NO_LEAF, np.int64)
    starts = np.full(len(rows), Tree.ROOT) if starts is None else starts
    for place in range(waves.shape[1]):
        chosen = np.flatnonzero((num_leaves > place) & (tree.open_leaves[rows, starts] > 0))
        if not chosen.size:
            break
        waves[chosen, place] = leaves = descend(tree, rows[chosen], starts[chosen], rule)
        reserve(tree, rows[chosen], leaves)
    return waves


class BoundScores:
    """Scores edges by puct or uct; the same for every search."""

    def __init__(self, settings: BoundRule, run: RunShape) -> None:
        """Translate the settings for the compiled kernels."""
        axes = {name: value for name, value in asdict(settings).items() if name not in ("type", "values")}
        self.rule: DescentRule = descent_rule(
            selection=settings.type, discount=run.discount, widening=run.widening, **asdict(settings.values), **axes
        )

    def begin(self, search: SearchView) -> None:
        """Nothing depends on the search."""


class GumbelScores:
    """Scores edges by gumbel, whose noise and schedule at the root are those of the search."""

    def __init__(self, settings: Gumbel, run: RunShape) -> None:
        """Begin without any search."""
        self._settings = settings
        self._schedules: dict[int, Int[np.ndarray, "K S"]] = {}
        """By length, in the order in which lengths came up."""
        self.rule: DescentRule = descent_rule(
            selection="gumbel",
            discount=run.discount,
            value_scale=settings.value_scale,
            maxvisit_init=settings.maxvisit_init,
            rescale=settings.rescale_values,
            noise=np.zeros((run.num_rows, run.num_slots)),
            schedules=np.zeros((run.num_slots, 1), np.int64),
        )

    def begin(self, search: SearchView) -> None:
        """Draw the noise of a search and find the schedule for its cap on simulations."""
        noise = self.rule.noise[search.row]
        noise[:] = self._settings.gumbel_scale * np.random.default_rng(search.seed_of("gumbel")).gumbel(size=len(noise))
        # The first simulation expands the root itself.
        length = schedule_length(search.budget.num_simulations - 1)
        if length not in self._schedules:
            self._schedules[length] = halving_schedules(len(noise), length, max_considered=self._settings.max_considered)
            self.rule = self.rule._replace(schedules=_stacked(list(self._schedules.values())))
        self.rule.schedule_of[search.row] = list(self._schedules).index(length)


def _stacked(schedules: Sequence[Int[np.ndarray, "K S"]]) -> Int[np.ndarray, "P K L"]:
    """Stack schedules of different lengths. Each is padded with its last entry, which counts for everything after its end anyway."""
    longest = max(schedule.shape[1] for schedule in schedules)
    return np.stack([np.pad(schedule, ((0, 0), (0, longest - schedule.shape[1])), mode="edge") for schedule in schedules])


class DescentStrategy(Strategy):
    """Descends one leaf after another, under virtual loss."""

    def __init__(self, scores: BoundScores | GumbelScores, commitment: Commitment | None, run: RunShape, *, to_ends: bool) -> None:
        """Begin at the roots. With ``to_ends``, every simulation goes on to an end."""
        self._scores, self._commitment, self._discount = scores, commitment, np.float32(run.discount)
        self._starts = np.full(run.num_rows, Tree.ROOT)
        """Node at which each row's search starts now."""
        self._moved_at = np.zeros(run.num_rows, np.int64)
        """Number of simulations at the time of the move."""
        self._to_ends = to_ends
        self._below = np.full(run.num_rows, Tree.NO_PARENT)
        """Node below which each row's descent goes on; ``NO_PARENT`` at the beginning of one."""

    def begin(self, search: SearchView) -> None:
        """Begin at the root."""
        self._starts[search.row], self._moved_at[search.row], self._below[search.row] = Tree.ROOT, 0, Tree.NO_PARENT
        self._scores.begin(search)

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Descend from the present start node of each search."""
        rows = rows_of(searches)
        starts = np.where(self._below[rows] == Tree.NO_PARENT, self._starts[rows], self._below[rows])
        return select_descent(tree, rows, sizes, rule=self._scores.rule, starts=starts)

    def end_waves(self, tree: Tree, searches: Sequence[SearchView]) -> None:
        """Go on with descents, and move to the best child after enough simulations. The statistics do not change."""
        if self._to_ends:
            for search in searches:
                self._go_on(tree, search)
        if self._commitment is None:
            return
        first = self._commitment.commit if self._commitment.commit_first is None else self._commitment.commit_first
        for search in searches:
            enough = first if self._starts[search.row] == Tree.ROOT else self._commitment.commit
            if not search.goes_on and search.num_simulations - self._moved_at[search.row] >= enough:
                self._move(tree, search, self._commitment.commit_by)

    def _go_on(self, tree: Tree, search: SearchView) -> None:
        """Let the descent of a search go on below the node that it expanded, if a child there is open; else it is over."""
        (expansion,) = search.wave
        children = tree.children_index[search.row, expansion.leaf]
        children = children[children != Tree.UNVISITED]
        goes_on = expansion.num_samples > 0 and bool((tree.open_leaves[search.row, children] > 0).any())
        search.goes_on, self._below[search.row] = goes_on, expansion.leaf if goes_on else Tree.NO_PARENT

    def _move(self, tree: Tree, search: SearchView, commit_by: str) -> None:
        row = search.row
        children = tree.children_index[row, self._starts[row]]
        children = children[children != Tree.UNVISITED]
        if not children.size:
            return
        merits = tree.visits[row, children]
        if commit_by == "value":
            merits = np.nan_to_num(tree.reward[row, children] + self._discount * tree.value[row, children], nan=-np.inf)
        self._starts[row], self._moved_at[row] = children[merits.argmax()], search.num_simulations
