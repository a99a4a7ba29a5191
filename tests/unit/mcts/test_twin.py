"""The array engine grows the same trees as the pointer twin, node for node, for every method and in every arrival order."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.testing import CharRenderer, ExactVerifier, ScriptedPolicy, TableScorer, error_step, make_step
from stepladder.types import Budget, Problem, Provenance, StopReason, derive_seed
from tests.reference.pointer_mcts import PointerSearch

PROVENANCE = Provenance(round=2, policy_version=1, scorer_version=1, seed=7, config_hash="0" * 16, renderer_hash="r")
PROBLEMS = [Problem(id=f"p{i}", question=f"q{i}") for i in range(10)]
ANSWERS = {problem.id: "123"[i % 3] for i, problem in enumerate(PROBLEMS)}
RENDERER = CharRenderer()


def propose(prefix_ids, index, seed):
    """Return a short random step from a small alphabet (so that samples collide); some end, are cut, fail or hold no token at all."""
    rng = random.Random(derive_seed(str(prefix_ids), index, seed))
    luck, text = rng.random(), rng.choice("abcd") + rng.choice("xy") * rng.randint(0, 2)
    if luck < 0.12:
        return make_step(f"{text}={rng.choice('123')}", stop_reason=StopReason.END, logp=-rng.random())
    if luck < 0.16:
        return make_step(text, stop_reason=StopReason.END)
    if luck < 0.20:
        return make_step(text, stop_reason=StopReason.LENGTH)
    if luck < 0.23:
        return error_step("scripted")
    return make_step(text, logp=-rng.random())


def score(prefix_ids):
    """Return a score for most prefixes and None for some."""
    draw = derive_seed("score", str(prefix_ids)) % 10_007
    return None if draw % 17 == 0 else draw / 10_007


def both(method, *, budget, scored=True, labelled=False, arrival_seed=None, max_trees=256, problems=PROBLEMS, propose=propose):
    """Search problems with the engine and with the twin."""
    engine = SearchEngine(
        policy=ScriptedPolicy(propose, shuffle_seed=arrival_seed),
        scorer=TableScorer(score, shuffle_seed=arrival_seed) if scored else None,
        verifier=ExactVerifier(ANSWERS) if labelled else None,
        renderer=RENDERER,
        method=method,
        budget=budget,
        provenance=PROVENANCE,
        max_trees=max_trees,
    )
    results = {result.problem_id: result for result in engine.search(problems)}
    for problem in problems:
        twin = PointerSearch(
            problem=problem,
            renderer=RENDERER,
            method=method,
            budget=budget,
            provenance=PROVENANCE,
            propose=propose,
            score=score if scored else None,
            right_answer=ANSWERS[problem.id] if labelled else None,
        )
        yield results[problem.id], twin.run()


def assert_same(result, twin):
    """Compare every figure of every node."""
    record, nodes = result.tree, twin.nodes
    assert record.parents == [-1 if node.parent is None else node.parent.index for node in nodes]
    assert record.token_ids == [list(node.ids) for node in nodes]
    assert record.depths == [node.depth for node in nodes]
    assert record.stop_reasons == [str(node.reason) for node in nodes]
    assert record.visits == [node.visits for node in nodes]
    assert record.scores == [node.score for node in nodes]
    assert record.answers == [node.answer for node in nodes]
    assert record.outcomes == [node.outcome for node in nodes]
    values = [math.nan if value is None else value for value in record.values]
    np.testing.assert_allclose(values, [node.value for node in nodes], atol=1e-6)
    if not twin.sampling:
        np.testing.assert_allclose(record.priors, [node.prior for node in nodes], atol=1e-6)
    assert (record.generated_tokens, record.num_simulations) == (twin.tokens, twin.simulations)
    assert result.stop_reason == twin.stop
    if twin.method.answer_rule in ("robust-path", "value-path"):
        assert [answer for _, answer in result.anytime] == twin.leaders


SELECTIONS = [
    {"selection": "puct"},
    {"selection": "puct", "normalise": "siblings", "c": 0.5},
    {"selection": "puct-mctx", "normalise": "siblings"},
    {"selection": "puct-mctx", "unvisited": "parent", "c_base": 20.0},
    {"selection": "uct", "c": 0.7, "unvisited": "inf"},
    {"selection": "uct", "c": 1.4, "unvisited": "zero"},
    {"selection": "beam", "wave": 3},
]
GRID = [
    {"wave": wave, "backup": backup, "evaluation": evaluation, "terminals": terminals, "prior": prior, **selection}
    for selection, backup, evaluation, wave, terminals, prior in itertools.product(
        SELECTIONS, ["mean", "child-mean"], ["children", "leaf"], [1, 3], ["skip", "revisit"], ["uniform", "frequency", "mean-logp"]
    )
]


@pytest.mark.parametrize("part", range(8))
def test_engine_equals_twin_on_every_combination_of_axes(part):
    """Every selection, backup, evaluation, wave, terminal and prior rule, with and without labels and scores, in shuffled arrival order."""
    for i, axes in list(enumerate(GRID))[part::8]:
        if axes["selection"] == "beam":
            # A beam never visits a terminal again, and has no such setting.
            axes = {name: value for name, value in axes.items() if name != "terminals"}
        method = resolve_method("mcts", num_children=3, **axes)
        budget = Budget(num_simulations=12, max_depth=5)
        flags = {"scored": i % 3 != 0, "labelled": i % 2 == 0, "arrival_seed": i, "max_trees": 1 + i % 4}
        for result, twin in both(method, budget=budget, problems=PROBLEMS[i % 7 :][:2], **flags):
            assert_same(result, twin)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize(
    "budget", [Budget(num_simulations=1), Budget(num_simulations=25, max_depth=4), Budget(num_simulations=500, max_tokens=60)]
)
def test_engine_equals_twin_for_every_preset(name, budget):
    """The presets as they are, under simulation, depth and token budgets."""
    for labelled in (False, True):
        for result, twin in both(resolve_method(name), budget=budget, labelled=labelled, arrival_seed=3, problems=PROBLEMS[:4]):
            assert_same(result, twin)


@pytest.mark.parametrize(
    "axes",
    [{}, {"draw_steps": 1}, {"draw_steps": 3, "wave": 4}, {"root_draws": 5, "restart_power": 0.3}, {"restart_power": 0.0, "draw_steps": 2}],
)
def test_engine_equals_twin_with_restarts(axes):
    """Draws of every length, many or few from the root, and from good nodes again and again or hardly ever."""
    for flags in ({"scored": True}, {"scored": False}, {"labelled": True, "arrival_seed": 5}):
        for budget in (Budget(num_simulations=40, max_depth=7), Budget(num_simulations=500, max_tokens=150, max_depth=5)):
            for result, twin in both(resolve_method("restart", **axes), budget=budget, problems=PROBLEMS[:4], **flags):
                assert_same(result, twin)


def test_engine_equals_twin_with_one_child_with_discount_and_greedily():
    """K = 1 makes chains; a discount shrinks returns on the way up; temperature 0 asks for one sample."""
    for axes in (
        {"num_children": 1},
        {"discount": 0.9},
        {"discount": 0.9, "backup": "child-mean"},
        {"temperature": 0.0},
        {"root_num_children": 9},
    ):
        for result, twin in both(
            resolve_method("mcts", wave=2, **axes), budget=Budget(num_simulations=20, max_depth=6), labelled=True, problems=PROBLEMS[:4]
        ):
            assert_same(result, twin)


def propose_rare(prefix_ids, index, seed):
    """The same steps, each of them so unlikely that there is always more to sample."""
    step = propose(prefix_ids, index, seed)
    return replace(step, logps=tuple(4 * logp - 1 for logp in step.logps))


AXES = {
    "puct-muzero": {"selection": "puct-muzero", "c_base": 30.0, "evaluation": "leaf", "unvisited": "zero"},
    "gumbel": {"selection": "gumbel", "evaluation": "leaf"},
    "gumbel without noise or rescaling": {"selection": "gumbel", "evaluation": "leaf", "gumbel_scale": 0.0, "rescale_values": False},
    "gumbel, two candidates, revisits": {"selection": "gumbel", "evaluation": "leaf", "max_considered": 2, "terminals": "revisit"},
    "best-first": {"selection": "best-first"},
    "best-first, paths, pruned": {"selection": "best-first", "estimate": "path", "aggregation": "product", "min_value": 0.2},
    "depth-first": {"selection": "depth-first", "min_value": 0.3},
    "beam of groups": {"selection": "beam", "wave": 4, "groups": 2},
    "beam of lone groups": {"selection": "beam", "wave": 3, "groups": 3, "root_num_children": 3},
    "beam ranked by paths": {"selection": "beam", "wave": 2, "estimate": "path", "aggregation": "min"},
    "norm-logp": {"prior": "norm-logp", "prior_temperature": 0.7},
    "exp-norm-logp": {"prior": "exp-norm-logp"},
    "exp-mean-logp": {"prior": "exp-mean-logp", "prior_temperature": 2.0},
    "flat frequencies": {"prior": "frequency", "prior_temperature": 3.0},
    "ones": {"prior": "ones"},
    "ones with root noise": {"prior": "ones", "root_noise": 0.25},
    "root noise": {"root_noise": 0.25, "root_noise_alpha": 0.5},
    "finite bonus": {"selection": "uct", "unvisited_bonus": 0.4, "evaluation": "leaf"},
    "uniform child mean": {"backup": "uniform-child-mean"},
    "max": {"backup": "max", "discount": 0.95},
    "min": {"backup": "min"},
    "min of leaves": {"backup": "min", "evaluation": "leaf"},
    "gains": {"reward": "gain", "discount": 0.9},
    "gains from children": {"reward": "gain", "backup": "child-mean", "discount": 0.9},
    "gains, max": {"reward": "gain", "backup": "max", "evaluation": "leaf"},
    "merged by text": {"merge": "text", "num_children": 5},
    "segments": {"cut_steps": "continue"},
    "value gate": {"stop_value": 0.6},
    "agreement": {"stop_agreement": 3, "stop_window": 5},
    "rollouts": {"rollouts": 2, "rollout_mix": 0.5},
    "rollouts of the best": {"rollouts": 2, "rollout_of": "best", "evaluation": "leaf", "reward": "gain"},
    "lookahead": {"selection": "beam", "wave": 2, "rollouts": 1, "rollout_steps": 2, "rollout_temperature": 0.0},
    "lookahead along paths": {"rollouts": 1, "rollout_steps": 1, "estimate": "path", "aggregation": "mean"},
    "best child": {"evaluation": "best"},
    "best child, gains": {"evaluation": "best", "reward": "gain", "backup": "child-mean", "unvisited_bonus": 0.3},
    "best child, rolled out": {"evaluation": "best", "rollouts": 2, "rollout_of": "best", "rollout_value": "best"},
    "best of rollouts along paths": {"rollouts": 2, "rollout_value": "best", "estimate": "path", "aggregation": "mean"},
    "agreement of rollouts": {"rollouts": 3, "rollout_value": "agreement", "evaluation": "best", "rollout_of": "best"},
    "agreement of all children": {"rollouts": 3, "rollout_value": "agreement"},
    "A*": {"selection": "best-first", "estimate": "path", "aggregation": "min", "ahead": 0.5, "stop_at_goal": True},
    "depth-first to a goal": {"selection": "depth-first", "stop_at_goal": True, "aggregation": "mean", "ahead": 2.0},
    "critic": {"critic_mix": 0.4, "evaluation": "leaf"},
    "critic, uct": {"critic_mix": 0.7, "selection": "uct", "unvisited": "inf"},
    "particles": {"selection": "resample", "wave": 5, "num_children": 1, "resample_temperature": 0.7},
    "particles by value": {"selection": "resample", "wave": 2, "resample_by": "value", "resample_temperature": 0.3},
    "uncertain steps branch": {"branch_entropy": 0.4},
    "uncertain particles branch": {"branch_entropy": 0.4, "selection": "resample", "wave": 4},
    "shared samples": {"selection": "beam", "wave": 6, "share": True, "root_num_children": 4},
    "robust path": {"answer_rule": "robust-path", "terminals": "revisit"},
    "robust path, no revisits": {"answer_rule": "robust-path", "stop_agreement": 4, "stop_window": 6},
    "value path": {"answer_rule": "value-path"},
    "ends once": {"evaluation": "leaf", "terminals": "once"},
    "ends once, child mean": {"evaluation": "leaf", "terminals": "once", "backup": "child-mean", "discount": 0.9},
    "ends once, best-first": {"evaluation": "leaf", "terminals": "once", "selection": "best-first"},
    "ends once, gains": {"evaluation": "leaf", "terminals": "once", "reward": "gain"},
    "ends alone": {"evaluation": "ends"},
    "ends alone, max": {"evaluation": "ends", "backup": "max", "reward": "gain"},
    "ends worth their scores": {"end_value": "score"},
    "ends worth their scores, agreement": {"end_value": "score", "rollouts": 2, "rollout_value": "agreement"},
    "descents": {"count": "descents", "evaluation": "ends", "selection": "uct", "wave": 1},
    "descents, committed": {"count": "descents", "wave": 1, "commit": 2, "commit_first": 3},
    "descents, revisits of ends": {"count": "descents", "wave": 1, "evaluation": "ends", "terminals": "revisit", "selection": "uct"},
    "descents, revisits": {"count": "descents", "wave": 1, "evaluation": "leaf", "terminals": "revisit"},
    "commit later at first": {"commit": 2, "commit_first": 6},
    "commit by visits": {"commit": 4},
    "commit by value": {"commit": 3, "commit_by": "value", "backup": "child-mean"},
}


@pytest.mark.parametrize("name", sorted(AXES))
def test_engine_equals_twin_on_every_further_axis(name):
    """Every member of every axis, one leaf and three in flight, with and without labels and scores, in shuffled arrival order."""
    for i, (wave, labelled, scored) in enumerate(itertools.product((None, 3), (False, True), (True, False))):
        axes = {
            "num_children": 3,
            "answer_rule": "weighted-vote",
            **AXES[name],
            **({"wave": wave} if wave and "wave" not in AXES[name] else {}),
        }
        method = resolve_method("mcts", **axes)
        budget = Budget(num_simulations=20, max_depth=6)
        for result, twin in both(
            method, budget=budget, scored=scored, labelled=labelled, arrival_seed=i, max_trees=1 + i % 3, problems=PROBLEMS[:3]
        ):
            assert_same(result, twin)


WIDENINGS = {
    "power": {"widen": "power"},
    "power, wide": {"widen": "power", "widen_base": 5.0, "again_samples": 3, "prior": "mean-logp", "backup": "child-mean"},
    "power, leaves": {"widen": "power", "evaluation": "leaf", "terminals": "revisit", "selection": "uct", "unvisited": "inf"},
    "power, best child": {"widen": "power", "evaluation": "best", "again_samples": 2, "rollouts": 2, "rollout_of": "best"},
    "power, rollouts and gains": {"widen": "power", "rollouts": 1, "reward": "gain", "discount": 0.9},
    "power, root noise": {"widen": "power", "root_noise": 0.25, "selection": "puct-muzero"},
    "power, text": {"widen": "power", "merge": "text", "num_children": 5, "branch_entropy": 0.4},
    "power, committed": {"widen": "power", "commit": 4},
    "power, descents of ends": {"widen": "power", "evaluation": "ends", "count": "descents", "wave": 1, "reward": "gain"},
    "power, distinct": {"widen": "power", "siblings": "distinct", "again_samples": 2, "prior": "sum-logp"},
    "power, best-first": {"widen": "power", "selection": "best-first"},
    "power, best-first, pruned": {"widen": "power", "selection": "best-first", "min_value": 0.3, "terminals": "revisit"},
    "power, depth-first": {"widen": "power", "selection": "depth-first", "widen_power": 1.0, "siblings": "distinct"},
    "frontier": {
        **{"selection": "best-first", "priority": "probability", "widen": "gen", "siblings": "distinct", "prior": "sum-logp"},
        **{"least_probability": 0.01, "wave": 2},
    },
    "frontier without scores": {"selection": "best-first", "priority": "probability", "widen": "gen", "score_weight": 0.0},
    "frontier without paths": {
        "selection": "best-first",
        "priority": "probability",
        "path_weight": 0.0,
        "widen": "power",
        "min_value": 0.1,
    },
    "DeepSearch": {"selection": "best-first", "priority": "deepsearch", "surprisal_weight": 0.4, "depth_weight": 0.3, "widen": "power"},
    "adaptive": {"selection": "ab-mcts", "widen": "gen", "num_children": 1},
    "adaptive, Beta": {"selection": "ab-mcts", "belief": "beta", "widen": "gen", "again_samples": 2, "evaluation": "best"},
    "adaptive, mixed": {"selection": "ab-mcts", "belief": "mixed", "widen": "gen", "siblings": "distinct"},
    "stay": {"widen": "stay"},
    "stay, narrow": {"widen": "stay", "stay_low": 0.4, "stay_high": 0.6, "again_samples": 2, "selection": "uct", "least_unseen": 0.2},
    "distinct": {"siblings": "distinct"},
    "distinct beams": {"siblings": "distinct", "selection": "beam", "wave": 2},
}


@pytest.mark.parametrize("name", sorted(WIDENINGS))
def test_engine_equals_twin_where_nodes_are_sampled_again(name):
    """Every widening, with few and with endless different steps, with and without labels and scores, in shuffled arrival order."""
    again = 0
    cases = [(None, False, True, propose_rare), (3, True, True, propose), (3, False, False, propose_rare), (None, True, True, propose_rare)]
    for i, (wave, labelled, scored, policy) in enumerate(cases):
        axes = {
            "num_children": 2,
            "answer_rule": "weighted-vote",
            **WIDENINGS[name],
            **({"wave": wave} if wave and "wave" not in WIDENINGS[name] else {}),
        }
        method = resolve_method("mcts", **axes)
        for result, twin in both(
            method,
            budget=Budget(num_simulations=20, max_depth=5),
            scored=scored,
            labelled=labelled,
            arrival_seed=i,
            max_trees=1 + i % 3,
            problems=PROBLEMS[:2],
            propose=policy,
        ):
            assert_same(result, twin)
            again += sum(node.samples > method.root_samples for node in twin.nodes)
    assert ("widen" in WIDENINGS[name]) == (again > 0)


def test_engine_equals_twin_under_a_cap_on_calls():
    """Expansions are counted, revisits are not."""
    for name, cap in itertools.product(("mcts", "beam", "majority"), (1, 4, 7)):
        options = {"terminals": "revisit"} if name == "mcts" else {}
        for result, twin in both(
            resolve_method(name, wave=2, **options), budget=Budget(num_simulations=50, max_calls=cap), problems=PROBLEMS[:4]
        ):
            assert_same(result, twin)
            assert result.tree.policy_calls == twin.calls <= cap
