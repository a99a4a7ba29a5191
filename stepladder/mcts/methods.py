"""The named search methods: published systems and plain baselines as points on the axes of ``SearchMethod``.

To add one, add a row to ``_ROWS``: what it does, its settings where they differ from the defaults, its source with the published budget,
and where it differs from the source. Everything else (help, documentation, tests against the pointer twin) follows from the row.

Scores and values are in [0, 1] here. A system whose values are in [-1, 1] keeps its order of children when its values become (1 + v) / 2
and its exploration constant is halved; its rows say so. Systems that evaluate by questions to the policy are given the PRM's score instead.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from stepladder.errors import ConfigError
from stepladder.mcts.axes import SearchMethod, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A named method and where it comes from."""

    method: SearchMethod
    """The method."""
    source: str
    """Paper or system; ``ours`` for what has none."""
    budget: str = ""
    """The budget that the source reports, in words; empty when it states none. A search takes its budget from the caller."""
    differs: str = ""
    """Where the method departs from the source; empty when it does not."""


def _row(name: str, description: str, *, source: str, budget: str = "", differs: str = "", **settings: Any) -> Preset:
    method = SearchMethod(name=name, description=description, **settings)
    return Preset(method=method, source=source, budget=budget, differs=differs)


_ROWS = (
    _row(
        "mcts",
        "Monte-Carlo tree search: PUCT over steps, every step scored and backed up, answer by score-weighted vote over paths.",
        source="ours",
        answer_rule="path-vote",
    ),
    _row(
        "uct",
        "Monte-Carlo tree search without priors: UCT over steps, answer by score-weighted vote.",
        source="Kocsis & Szepesvari 2006, Bandit based Monte-Carlo planning",
        differs="bonus 0 for a child without visits; values are scores",
        selection="uct",
        c=0.7,
        prior="uniform",
    ),
    _row(
        "gumbel",
        "Gumbel search: sequential halving among the root's children, the improved policy below, answer by score-weighted vote.",
        source="Danihelka et al. 2022, Policy improvement by planning with Gumbel",
        differs="children are samples of the policy; the schedule is made for the cap on simulations, 4,096 at most",
        selection="gumbel",
        evaluation="leaf",
        prior="mean-logp",
        num_children=8,
        terminals="revisit",
    ),
    _row(
        "beam",
        "Step-level beam search: the best wave steps of each depth go on with num_children steps each, answer by best score.",
        source="Snell et al. 2024, Scaling LLM test-time compute optimally",
        differs="a beam that ends is not replaced",
        selection="beam",
        wave=4,
        answer_rule="best",
    ),
    _row(
        "beam-lookahead",
        "Beam search in which a step is ranked by the score one greedy step further on.",
        source="Snell et al. 2024, Scaling LLM test-time compute optimally (lookahead search)",
        differs="a beam that ends is not replaced",
        selection="beam",
        wave=4,
        rollouts=1,
        rollout_steps=1,
        rollout_temperature=0.0,
        answer_rule="best",
    ),
    _row(
        "dvts",
        "Diverse verifier tree search: four subtrees below the root, in each of which the best step of every depth goes on.",
        source="Beeching et al. 2024, Scaling test-time compute with open models (search-and-learn)",
        budget="16 beams of which 4 go on, 40 steps",
        selection="beam",
        wave=4,
        groups=4,
        num_children=4,
        temperature=0.8,
        answer_rule="best",
    ),
    _row(
        "best-first",
        "Best-first search: the open leaf with the highest score anywhere in the tree is expanded next.",
        source="Hart et al. 1968, A formal basis for the heuristic determination of minimum cost paths",
        differs="the score is the whole priority: there is no cost of the path behind",
        selection="best-first",
        answer_rule="best",
    ),
    _row(
        "tot-bfs",
        "Tree of thoughts, breadth first: the five best steps of each depth go on with five steps each.",
        source="Yao et al. 2023, Tree of thoughts",
        budget="3 steps deep (Game of 24)",
        differs="steps are scored by the PRM, not by votes of the policy",
        selection="beam",
        wave=5,
        num_children=5,
        root_num_children=5,
        temperature=0.7,
        answer_rule="best",
    ),
    _row(
        "tot-dfs",
        "Tree of thoughts, depth first: the best step of the deepest level goes on, and steps below min_value never do.",
        source="Yao et al. 2023, Tree of thoughts",
        budget="100 steps (crosswords)",
        differs="steps are scored by the PRM; the threshold, which the paper states in words, is 0.1",
        selection="depth-first",
        min_value=0.1,
        num_children=5,
        temperature=0.7,
        answer_rule="best",
    ),
    _row(
        "lats",
        "Language agent tree search: UCT, the best new child is played to its end, answer by best score.",
        source="Zhou et al. 2024, Language agent tree search unifies reasoning, acting and planning",
        budget="7 steps deep",
        differs="steps are scored by the PRM; no reflections, which would change the prompt; all new children are backed up",
        selection="uct",
        c=1.0,
        prior="uniform",
        num_children=5,
        rollouts=1,
        rollout_of="best",
        rollout_mix=1.0,
        answer_rule="best",
    ),
    _row(
        "rstar-math:paper",
        "rStar-Math at test time: UCT without priors, every new child starts with one visit worth its score, best-scored solution.",
        source="Guan et al. 2025, rStar-Math",
        budget="12 simulations, 16 steps deep; for data: num_children=12, 48 simulations",
        differs="steps are not executed as Python; the mean over the new children is backed up, not only ends",
        selection="uct",
        c=2.0,
        prior="uniform",
        unvisited="inf",
        num_children=32,
        terminals="revisit",
        answer_rule="best",
    ),
    _row(
        "rstar-math:code",
        "rStar-Math as released: no bonus for a child without visits, ended children are never selected again.",
        source="Guan et al. 2025, rStar-Math (released code)",
        budget="12 simulations, 16 steps deep; for data: num_children=12, 48 simulations",
        differs="steps are not executed as Python; the mean over the new children is backed up, not only ends",
        selection="uct",
        c=2.0,
        prior="uniform",
        unvisited="zero",
        num_children=32,
        answer_rule="best",
    ),
    _row(
        "rest-mcts",
        "ReST-MCTS*: UCT over values, the best new child is rolled forward greedily, visit-weighted backup, stops at a value of 0.9.",
        source="Zhang et al. 2024, ReST-MCTS*",
        budget="50 simulations; while generating data stop_value=0.8",
        differs="c = 0.7 * sqrt(2) puts the 2 of the formula into the constant; a rollout counts with its last value, the paper takes its "
        "best; the bonus of a child without visits, finite in the paper, is 1",
        selection="uct",
        c=0.7 * 2**0.5,
        prior="uniform",
        unvisited_bonus=1.0,
        evaluation="leaf",
        num_children=3,
        rollouts=1,
        rollout_of="best",
        rollout_steps=3,
        rollout_temperature=0.0,
        rollout_mix=0.5,
        backup="child-mean",
        stop_value=0.9,
        answer_rule="best",
    ),
    _row(
        "mcts-dpo",
        "Iterative preference learning: PUCT, length-normalised priors, steps rewarded by their gain, one step committed at a time.",
        source="Xie et al. 2024, Monte Carlo tree search boosts reasoning via iterative preference learning",
        budget="64 simulations per committed step",
        differs="a node is worth its PRM score where the paper adds outcome and self-evaluation; a new child counts with its own value",
        c=1.0,
        prior="exp-norm-logp",
        reward="gain",
        backup="child-mean",
        commit=64,
    ),
    _row(
        "alphamath:paper",
        "AlphaMath: PUCT with the steps' mean token probabilities as priors, leaves are worth their value, running mean.",
        source="Chen et al. 2024, AlphaMath almost zero",
        budget="40 simulations, 8 steps deep; temperature 0.6 in the first round",
        differs="values in [0, 1]: c is half of 1.25, and 0.5 stands for the 0 of a child without visits",
        c=0.625,
        prior="exp-mean-logp",
        unvisited="zero",
        unvisited_bonus=0.5,
        num_children=5,
        evaluation="leaf",
        terminals="revisit",
    ),
    _row(
        "alphamath:code",
        "AlphaMath with the exploration constant of its released code.",
        source="Chen et al. 2024, AlphaMath almost zero (released code)",
        budget="40 simulations, 8 steps deep; temperature 0.6 in the first round",
        differs="values in [0, 1]: c is half of 1.5, and 0.5 stands for the 0 of a child without visits",
        c=0.75,
        prior="exp-mean-logp",
        unvisited="zero",
        unvisited_bonus=0.5,
        num_children=5,
        evaluation="leaf",
        terminals="revisit",
    ),
    _row(
        "alphamath-sbs",
        "AlphaMath's step-level beam search SBS(3, 5): three beams, five steps each.",
        source="Chen et al. 2024, AlphaMath almost zero",
        budget="8 steps deep; SBS(1, 5) is wave=1",
        selection="beam",
        wave=3,
        num_children=5,
        answer_rule="best",
    ),
    _row(
        "x1",
        "x1: MuZero's PUCT over rescaled values, leaves mix their value with a rollout, visit-weighted backup with discount 0.96.",
        source="Besta et al. 2025, Reasoning language models: a blueprint",
        differs="the share of the rollout, free in the paper, is 0.5; priors are a softmax over the siblings",
        selection="puct-muzero",
        c=1.25,
        normalise="siblings",
        prior="mean-logp",
        evaluation="leaf",
        rollouts=1,
        rollout_mix=0.5,
        backup="child-mean",
        discount=0.96,
        terminals="revisit",
    ),
    _row(
        "rover",
        "Values of the uniform policy: PUCT without priors, a node is worth the plain mean of its children.",
        source="He et al. 2025, Random policy valuation is enough for LLM reasoning with verifiable rewards",
        differs="the paper trains on these values; here a tree is searched for them",
        prior="uniform",
        backup="uniform-child-mean",
    ),
    _row(
        "treepo",
        "Segment tree: all running branches go on by two segments of at most max_step_tokens each, sixteen at once, answer by majority.",
        source="Li et al. 2025, TreePO",
        differs="a segment also ends at a step boundary; when branches end, no finished one is branched again",
        selection="beam",
        wave=16,
        num_children=2,
        root_num_children=16,
        cut_steps="continue",
        answer_rule="majority",
    ),
    _row(
        "best-of-n",
        "Independent full solutions, one per simulation, answer by best score.",
        source="Cobbe et al. 2021, Training verifiers to solve math word problems",
        selection="sample",
        wave=4,
        answer_rule="best",
    ),
    _row(
        "majority",
        "Independent full solutions, one per simulation, answer by majority; needs no PRM.",
        source="Wang et al. 2022, Self-consistency improves chain of thought reasoning",
        selection="sample",
        wave=4,
        answer_rule="majority",
    ),
    _row(
        "weighted-vote",
        "Independent full solutions, one per simulation, answer by score-weighted vote.",
        source="Uesato et al. 2022, Solving math word problems with process- and outcome-based feedback",
        selection="sample",
        wave=4,
    ),
    _row(
        "greedy",
        "One full solution, the likeliest token at every place.",
        source="ours",
        selection="sample",
        temperature=0.0,
        answer_rule="majority",
    ),
)
PRESETS = {row.method.name: row for row in _ROWS}
"""The presets by name, with their sources."""
METHODS = {name: preset.method for name, preset in PRESETS.items()}
"""The methods by name."""
OUTSIDE = {
    "A*, Q*": "their priority adds the utility of the path behind to a separately trained estimate of what lies ahead: two scorers, where "
    "the engine has one; `best-first` is the search with one",
    "Agent Q": "its values mix the tree's with ranks that the policy itself gives to siblings: one more question to the policy per node",
    "particle filtering": "survivors are drawn at random, some several times, and each is expanded as often as it was drawn; selection "
    "here is deterministic and takes a leaf once",
    "rStar mutual consistency": "a second policy has to complete masked solutions; the engine has one policy",
    "rStar-Math beam": "the defaults of the released code could not be checked; `beam` with its options is the search",
    "value augmented sampling": "it reweighs tokens inside a step; the engine sees whole steps",
    "x1 without priors (released code)": "a prior of 1 for every child is no distribution over siblings; `x1` with uniform priors explores "
    "by a K-th as much",
}
"""Published searches that the axes do not express, and why."""


def resolve_method(name: str, /, **overrides: Any) -> SearchMethod:
    """Return a preset with some of its axes set otherwise.

    Raises:
        ConfigError: If the name or an axis is unknown, or a value is unknown or impossible.
    """
    if name not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}: got {name!r}{nearest(name, METHODS)}")
    axes = [f.name for f in fields(SearchMethod) if f.name not in ("name", "description")]
    for axis in overrides:
        if axis not in axes:
            raise ConfigError(f"method {name!r}: unknown setting {axis!r}{nearest(axis, axes)}")
    return replace(METHODS[name], **overrides)
