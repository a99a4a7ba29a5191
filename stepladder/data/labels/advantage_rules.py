"""Rules that give every token of solutions, or of steps, an advantage: what policy gradients learn from.

The trees of a problem are joined at their common root, the prompt, and compared as one group. A tree counts each of its leaves once. A rule
for solutions makes a row of every graded leaf, with an advantage for each of its steps. A rule for steps makes a row of every step after
its prefix. Rows are made of stored tokens and their stored log-probabilities.

A rule is a frozen dataclass like those of ``pair_rules``; to add one, write it here and add it to ``AdvantageRule``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from stepladder.data.labels import advantages as formulas
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import ValueTarget, gather_evidence, node_values
from stepladder.settings import Count, NonNegative, Positive, Share, check_bounds
from stepladder.tree_paths import ids_along, join_prompt, observation_ids, path_below_root, path_to, path_tokens, text_along
from stepladder.types import AdvantageRow, StopReason, TreeRecord

_CUT = (StopReason.LENGTH, StopReason.DEPTH)
_NONE = 1e-9
"""Advantages below it are rounding."""


class Place(NamedTuple):
    """A node of one of several trees."""

    tree: int
    """Number of the tree."""
    node: int
    """Its node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """The trees of one problem, joined at their roots; entry i of every list belongs to node i, and parents come before children."""

    records: Sequence[TreeRecord]
    """The trees."""
    places: list[Place]
    """Where each node is stored; the root is that of the first tree."""
    parents: list[int]
    """Parent of each node, -1 for the root."""
    rewards: list[float | None]
    """Outcome where a solution ends; None elsewhere."""
    scores: list[float | None]
    """PRM score of the step into each node; None without one."""

    @classmethod
    def of(cls, records: Sequence[TreeRecord]) -> "Forest":
        """Join the trees of a problem.

        Raises:
            DataFormatError: If a tree breaks its own rules.
        """
        places, parents, rewards, scores = [Place(0, 0)], [-1], [records[0].outcomes[0]], [records[0].scores[0]]
        for number, record in enumerate(records):
            gather_evidence(record)
            shift = len(places) - 1
            places += [Place(number, node) for node in range(1, len(record.parents))]
            parents += [parent + shift if parent else 0 for parent in record.parents[1:]]
            rewards += record.outcomes[1:]
            scores += record.scores[1:]
        return cls(records=records, places=places, parents=parents, rewards=rewards, scores=scores)

    @property
    def leaves(self) -> list[int]:
        """Nodes at which a solution ends."""
        return [node for node, reward in enumerate(self.rewards) if reward is not None and node]

    def path(self, node: int) -> list[int]:
        """Return the nodes from below the root down to a node."""
        return path_below_root(self.parents, node)

    def outcome(self, leaf: int) -> float:
        """Return the reward of a leaf."""
        reward = self.rewards[leaf]
        assert reward is not None, "a leaf has a reward"
        return reward


Credit = dict[int, list[float]]
"""Advantages of the steps on the way to each learned leaf, or of each learned step alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _AdvantageRule:
    """Common settings of all rules."""

    of_steps: ClassVar[bool] = False
    """Whether rows are steps after their prefixes, and not solutions."""
    needs_scores: ClassVar[bool] = False
    """Whether the steps need scores by a PRM."""

    skip_even: bool = True
    """Leave out problems in which every advantage is 0, such as those that are always or never solved. Their rows would only count in the
    mean over an update."""
    learn_cut: bool = True
    """Learn from solutions that a limit cut, as wrong ones; otherwise others are still compared with them."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.advantages")

    def select(self, records: Sequence[TreeRecord]) -> Selection[AdvantageRow]:
        """Return the rows of some trees with outcomes."""
        groups: dict[str, list[TreeRecord]] = {}
        for record in records:
            groups.setdefault(record.problem_id, []).append(record)
        rows, dropped, considered = list[AdvantageRow](), Counter[str](), 0
        for group in groups.values():
            forest = Forest.of(group)
            candidates = list(range(1, len(forest.parents))) if self.of_steps else forest.leaves
            considered += len(candidates)
            usable = [node for node in candidates if not self._count_unusable(forest, node, dropped)]
            credit = self.credit(forest, usable) if usable else {}
            dropped["no advantage"] += len(usable) - len(credit)
            if self.skip_even and not any(abs(value) > _NONE for each in credit.values() for value in each):
                dropped["no difference"] += len(credit)
                continue
            kept = [node for node in credit if self.learn_cut or not _is_cut(forest, node)]
            dropped["cut"] += len(credit) - len(kept)
            rows += [_row(forest, node, credit[node], of_step=self.of_steps) for node in kept]
        return Selection(rows=rows, considered=considered, dropped_by_reason=dict(+dropped))

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of usable leaves or steps; those without one are left out."""
        raise NotImplementedError

    def _count_unusable(self, forest: Forest, node: int, dropped: Counter[str]) -> bool:
        """Say whether a candidate cannot be learned from, and count the reason."""
        path = [node] if self.of_steps else forest.path(node)
        if not all(_ids(forest, each) for each in path):
            dropped["failed step"] += 1
            return True
        if self.needs_scores and any(forest.scores[each] is None for each in path):
            dropped["no score"] += 1
            return True
        return False


def _ids(forest: Forest, node: int) -> list[int]:
    place = forest.places[node]
    return forest.records[place.tree].token_ids[place.node]


def _is_cut(forest: Forest, node: int) -> bool:
    place = forest.places[node]
    return forest.records[place.tree].stop_reasons[place.node] in _CUT


def _row(forest: Forest, node: int, advantages: list[float], *, of_step: bool) -> AdvantageRow:
    """Return the row of a solution, or of the step into a node."""
    place = forest.places[node]
    record = forest.records[place.tree]
    path = path_to(record, place.node)
    before, learned = (path[:-1], path[-1:]) if of_step else ([], path)
    tokens, per_token = path_tokens(record, learned), list[float]()
    for step, value in zip(learned, advantages, strict=True):
        per_token += [value] * len(record.token_ids[step])
        per_token += [0.0] * (len(observation_ids(record, step)) if step != learned[-1] else 0)
    return AdvantageRow(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *ids_along(record, before)],
        completion_ids=tokens.ids,
        advantages=per_token,
        logps=tokens.logps,
        prompt=join_prompt(record.question, [text_along(record, before)]),
        completion=tokens.text,
        provenance=record.provenance,
        completion_given=tokens.given,
    )


def _same_along(forest: Forest, of_leaves: Sequence[tuple[int, float]]) -> Credit:
    """Give all steps of a solution its advantage."""
    return {leaf: [value] * len(forest.path(leaf)) for leaf, value in of_leaves}


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAdvantages(_AdvantageRule):
    """The outcome against those of all solutions of the problem, whether or not they share a beginning.

    Dropped by reason: ``failed step``, ``no difference``, ``cut``.

    Source: Shao et al. 2024, "DeepSeekMath" (GRPO). Without ``scale``: Liu et al. 2025, "Understanding R1-Zero-like training" (Dr. GRPO).
        With ``leave_one_out``: Ahmadian et al. 2024, "Back to basics" (RLOO).
    """

    type: Literal["group"] = "group"
    """Name of the rule."""
    scale: bool = True
    """Divide by the standard deviation of the outcomes."""
    leave_one_out: bool = False
    """Compare with the mean of the others alone."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the solutions."""
        rewards = [forest.outcome(leaf) for leaf in nodes]
        found = formulas.group_advantages(rewards, scale=self.scale, leave_one_out=self.leave_one_out)
        return _same_along(forest, list(zip(nodes, found, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class TreePOAdvantages(_AdvantageRule):
    """The outcome against the mean of every group that shares a beginning, averaged over the groups.

    Dropped by reason: ``failed step``, ``no difference``, ``cut``.

    Source: Li et al. 2025, "TreePO", and its released code; it whitens over the tokens of a batch, we over the solutions of the problem.
    """

    type: Literal["treepo"] = "treepo"
    """Name of the rule."""
    by_size: bool = False
    """Weigh a group by its number of solutions; otherwise all groups count the same."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the solutions."""
        found = formulas.treepo_advantages(forest.rewards, forest.parents, by_size=self.by_size)
        return _same_along(forest, [(leaf, value) for leaf in nodes if (value := found[leaf]) is not None])


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeRLAdvantages(_AdvantageRule):
    """Every step against all solutions of the problem (global) and against its parent (local).

    Dropped by reason: ``failed step``, ``no difference``, ``cut``.

    Source: Hou et al. 2025, "TreeRL: LLM reinforcement learning with on-policy tree search".
    """

    type: Literal["treerl"] = "treerl"
    """Name of the rule."""
    released: bool = False
    """As in the released code, which divides by the root of the number of leaves before the difference."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps of the solutions."""
        found = formulas.treerl_advantages(forest.rewards, forest.parents, released=self.released)
        return {leaf: [found[node] or 0.0 for node in forest.path(leaf)] for leaf in nodes}


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeGroupAdvantages(_AdvantageRule):
    """The outcome against those of its tree, plus against those of all trees of the problem.

    Dropped by reason: ``failed step``, ``no difference``, ``cut``.

    Source: Ji et al. 2025, "Tree search for LLM agent reinforcement learning" (Tree-GRPO). A problem needs several trees
        (``search.allocation.trees_per_problem``).
    """

    type: Literal["tree-grpo"] = "tree-grpo"
    """Name of the rule."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the solutions."""
        trees = [forest.places[leaf].tree for leaf in nodes]
        found = formulas.tree_group_advantages([forest.outcome(leaf) for leaf in nodes], trees)
        return _same_along(forest, list(zip(nodes, found, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentAdvantages(_AdvantageRule):
    """Every step against its siblings, each step once, with values that average over children level by level.

    Dropped by reason: ``failed step``, ``no advantage`` (no graded end below it, or none at all), ``no difference``, ``cut``.

    Source: Guo et al. 2025, "Segment policy optimization" (SPO), the tree variant, which drops advantages of 0.
    """

    of_steps: ClassVar[bool] = True
    type: Literal["spo"] = "spo"
    """Name of the rule."""
    scale: bool = False
    """Divide by the standard deviation among the siblings."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps."""
        found = formulas.segment_advantages(forest.rewards, forest.parents, scale=self.scale)
        return {node: [value] for node in nodes if abs(value := found[node] or 0.0) > _NONE}


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierAdvantages(_AdvantageRule):
    """Every step by the signs of the ends below it, less their mean over the problem. One end counts after each beginning.

    Dropped by reason: ``failed step``, ``no advantage`` (another end after the same beginning counts), ``no difference``, ``cut``.

    Source: Wu et al. 2025, "DeepSearch: overcome the bottleneck of reinforcement learning with verifiable rewards via Monte Carlo tree
        search".
    """

    type: Literal["deepsearch"] = "deepsearch"
    """Name of the rule."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps of the solutions that count."""
        return formulas.deepsearch_advantages(forest.rewards, forest.parents, {leaf: _surprisal(forest, leaf) for leaf in nodes})


def _surprisal(forest: Forest, leaf: int) -> float:
    """Return the mean -log p of the sampled tokens of a solution."""
    places = [forest.places[node] for node in forest.path(leaf)]
    logps = [logp for tree, node in places for logp in forest.records[tree].logps[node]]
    return -sum(logps) / len(logps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentAdvantages(_AdvantageRule):
    """Every step against the node it starts from, each step once.

    Dropped by reason: ``failed step``, ``no advantage`` (a value is missing, or the two are equal), ``no difference``, ``cut``.

    Source: Kazemnejad et al. 2024, "VinePPO: unlocking RL potential for LLM reasoning through refined credit assignment"; values come from
        the tree instead of fresh rollouts.
    """

    of_steps: ClassVar[bool] = True
    type: Literal["parent"] = "parent"
    """Name of the rule."""
    value: ValueTarget = ValueTarget.MONTE_CARLO
    """Value of a node; see docs/training.md."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps."""
        per_tree = [formulas.parent_advantages(node_values(record, self.value), record.parents) for record in forest.records]
        places = {node: forest.places[node] for node in nodes}
        return {node: [value] for node, place in places.items() if abs(value := per_tree[place.tree][place.node] or 0.0) > _NONE}


@dataclass(frozen=True, kw_only=True, slots=True)
class _RewardRule(_AdvantageRule):
    """A rule with rewards from the scores of steps, beside the outcome."""

    needs_scores: ClassVar[bool] = True

    outcome_weight: NonNegative = 1.0
    """Weight of the outcome, >= 0; 0 goes by the scores alone."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps of the solutions: their returns against those of the other solutions."""
        found = []
        for leaf, rewards in zip(nodes, self.rewards([_scores(forest, leaf) for leaf in nodes]), strict=True):
            bonus = self.outcome_weight * forest.outcome(leaf)
            found.append(formulas.returns([*rewards[:-1], rewards[-1] + bonus]))
        return dict(zip(nodes, formulas.over_others(found), strict=True))

    def rewards(self, scores: list[list[float]]) -> list[list[float]]:
        """Return the rewards of the steps of every solution of a problem."""
        raise NotImplementedError


def _scores(forest: Forest, leaf: int) -> list[float]:
    return [forest.scores[node] or 0.0 for node in forest.path(leaf)]


@dataclass(frozen=True, kw_only=True, slots=True)
class MinFormAdvantages(_RewardRule):
    """Scores as rewards whose sum is the worst step of a solution, plus the outcome, against what the others earn per token.

    Dropped by reason: ``failed step``, ``no score``, ``no difference``, ``cut``.

    Source: Cheng et al. 2025, "Stop summation: min-form credit assignment is all process reward model needs for reasoning" (PURE).
    """

    type: Literal["pure"] = "pure"
    """Name of the rule."""
    temperature: Positive = 0.1
    """Temperature of the soft minimum, > 0."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps of the solutions."""
        found = formulas.min_form_advantages(
            [formulas.min_form_rewards(_scores(forest, leaf), temperature=self.temperature) for leaf in nodes],
            [[len(_ids(forest, node)) for node in forest.path(leaf)] for leaf in nodes],
            [forest.outcome(leaf) for leaf in nodes],
            outcome_weight=self.outcome_weight,
        )
        return dict(zip(nodes, found, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClippedAdvantages(_RewardRule):
    """Scores below a bound as punishments, so that more steps earn nothing, plus the outcome.

    Dropped by reason: ``failed step``, ``no score``, ``no difference``, ``cut``.

    Source: Gao et al. 2024, "On designing effective RL reward at training time for LLM reasoning" (clip). They train with PPO; the baseline
        here is the mean return of a step of the other solutions.
    """

    type: Literal["clip"] = "clip"
    """Name of the rule."""
    at: Share = 0.5
    """Score from which a step is not punished, in [0, 1]."""

    def rewards(self, scores: list[list[float]]) -> list[list[float]]:
        """Return the rewards of the steps."""
        return [formulas.clipped_rewards(each, at=self.at) for each in scores]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaAdvantages(_RewardRule):
    """Differences of scores as rewards, so that the return of a step is its score, plus the outcome.

    Dropped by reason: ``failed step``, ``no score``, ``no difference``, ``cut``.

    Source: Gao et al. 2024, "On designing effective RL reward at training time for LLM reasoning" (delta), with the baseline of ``clip``.
    """

    type: Literal["delta"] = "delta"
    """Name of the rule."""

    def rewards(self, scores: list[list[float]]) -> list[list[float]]:
        """Return the rewards of the steps."""
        return [formulas.delta_rewards(each) for each in scores]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferredAdvantages(_RewardRule):
    """The chance by the last scores that a solution is preferred to another one, plus the outcome.

    Dropped by reason: ``failed step``, ``no score``, ``no difference``, ``cut``.

    Source: Fu et al. 2025, "Reward shaping to mitigate reward hacking in RLHF" (PAR). Scores are turned into log-odds, as its reward
        model's are.
    """

    type: Literal["par"] = "par"
    """Name of the rule."""

    def rewards(self, scores: list[list[float]]) -> list[list[float]]:
        """Return the rewards of the steps; only the last one of a solution earns something."""
        of_solutions = formulas.preference_rewards([formulas.log_odds(each[-1]) for each in scores])
        return [[0.0] * (len(each) - 1) + [reward] for each, reward in zip(scores, of_solutions, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressAdvantages(_AdvantageRule):
    """The outcome against those of the other solutions, plus the progress of each step for a better prover.

    Dropped by reason: ``failed step``, ``no difference``, ``cut``.

    Source: Setlur et al. 2024, "Rewarding progress: scaling automated process verifiers for LLM reasoning" (PAV), equation 5: Q + alpha A,
        with Q the outcome of the solution. Their baseline is learned per token; here it is the mean outcome of the others.
    """

    type: Literal["pav"] = "pav"
    """Name of the rule."""
    alpha: NonNegative = 1.0
    """Weight of the progress, >= 0."""
    attempts: Count = 4
    """Attempts of the prover, of which it keeps the best, >= 1. With 1 it is the policy itself, whose progress teaches nothing new."""
    by: Literal["leaves", "score"] = "leaves"
    """Value of a node: the mean outcome of the leaves below it, or the PRM's score of its step."""

    def credit(self, forest: Forest, nodes: list[int]) -> Credit:
        """Return the advantages of the steps of the solutions."""
        sums, counts = formulas.sums_below(forest.rewards, forest.parents)
        values = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        if self.by == "score":
            values = [values[0], *forest.scores[1:]]
        gains = formulas.prover_gains(values, forest.parents, attempts=self.attempts)
        outcomes = formulas.group_advantages([forest.outcome(leaf) for leaf in nodes], scale=False, leave_one_out=True)
        return {
            leaf: [outcome + self.alpha * (gains[node] or 0.0) for node in forest.path(leaf)]
            for leaf, outcome in zip(nodes, outcomes, strict=True)
        }


AdvantageRule = (
    GroupAdvantages
    | TreePOAdvantages
    | TreeRLAdvantages
    | TreeGroupAdvantages
    | SegmentAdvantages
    | FrontierAdvantages
    | ParentAdvantages
    | MinFormAdvantages
    | ClippedAdvantages
    | DeltaAdvantages
    | PreferredAdvantages
    | ProgressAdvantages
)
"""Any rule."""
ADVANTAGE_RULES: dict[str, type[Any]] = {rule().type: rule for rule in get_args(AdvantageRule)}
"""The rules by name."""
