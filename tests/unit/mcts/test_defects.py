"""Defects found in released tree searches, each as a test that they would fail; and failures that must end as data."""

import math
from collections import Counter

import pytest

from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.mcts.strategies.beam import Beam
from stepladder.testing import CharRenderer, ExactVerifier, ScriptedPolicy, TableScorer, error_step, make_step
from stepladder.types import Budget, Problem, Provenance, StopReason
from tests.searches import ANSWERS, PROBLEMS, one, propose, run, score

TREE_METHODS = sorted(name for name, method in METHODS.items() if not method.samples_solutions)
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=0, seed=3, config_hash="0" * 16, renderer_hash="r")


def path_ids(tree, node):
    """Return the tokens from the prompt to the end of a node's step."""
    ids = []
    while node > 0:
        ids = tree.token_ids[node] + ids
        node = tree.parents[node]
    return tuple(tree.prompt_ids) + tuple(ids)


@pytest.mark.parametrize("name", ["beam", "dvts:paper", "tot-bfs", "alphamath-sbs", "rstar-math-beam"])
def test_outputs_stay_with_their_parent_after_a_beam_finishes(name):
    """A beam that ends must not shift the outputs of the others: every step names the prefix that it was sampled after."""

    def policy(prefix, index, seed):
        named = f"{hash(prefix) % 1000:03d}{index}"
        return make_step(f"{named}=1", stop_reason=StopReason.END) if len(prefix) > 8 and index == 0 else make_step(named + "\n")

    for result in run(name, policy=policy, budget=Budget(num_simulations=30, max_depth=6), problems=PROBLEMS[:4]).values():
        tree = result.tree
        assert "end" in tree.stop_reasons and max(tree.depths) > 3
        for node, parent in enumerate(tree.parents):
            if node and tree.stop_reasons[node] != "error":
                assert tree.texts[node][:3] == f"{hash(path_ids(tree, parent)) % 1000:03d}"


@pytest.mark.parametrize("name", [name for name in TREE_METHODS if METHODS[name].root_samples > 1])
def test_one_failed_child_does_not_drop_its_siblings(name):
    """Sample 1 of every request fails; its siblings are there, and are expanded."""

    def policy(prefix, index, seed):
        return error_step("out of memory") if index == 1 else propose(prefix, index, seed)

    tree = one(name, policy=policy, budget=Budget(num_simulations=40, max_depth=5)).tree
    children = [node for node, parent in enumerate(tree.parents) if parent == 0]
    failed = [node for node in children if tree.stop_reasons[node] == "error"]
    assert len(failed) == 1 and tree.texts[failed[0]] == "out of memory"
    assert len(children) > 1 and any(parent > 0 for parent in tree.parents)


def test_results_are_not_keyed_by_question_text():
    """Two problems with one question and other answers are two problems: seeds, trees and verdicts are their own."""
    twins = [Problem(id="first", question="same"), Problem(id="second", question="same")]
    engine = SearchEngine(
        policy=ScriptedPolicy(propose),
        verifier=ExactVerifier({"first": "1", "second": "2"}),
        renderer=CharRenderer(),
        method=resolve_method("mcts"),
        budget=Budget(num_simulations=20, max_depth=4),
        provenance=PROVENANCE,
    )
    results = {result.problem_id: result.tree for result in engine.search(twins)}
    assert set(results) == {"first", "second"}
    assert results["first"].token_ids != results["second"].token_ids
    for key, right in (("first", "1"), ("second", "2")):
        tree = results[key]
        assert any(outcome == 1.0 for outcome in tree.outcomes)
        for answer, outcome in zip(tree.answers, tree.outcomes, strict=True):
            assert answer is None or outcome == float(answer == right)


@pytest.mark.parametrize("name", [name for name in TREE_METHODS if not METHODS[name].growth.rollouts])
def test_no_leaf_is_expanded_or_scored_twice(name):
    """Each prefix is asked for once, or each time with a seed of its own, and each step is scored once."""
    policy, scorer = ScriptedPolicy(propose), TableScorer(score)
    one(name, policy=policy, scorer=scorer, budget=Budget(num_simulations=12, max_depth=6))
    asked = Counter((request.prefix_ids, request.seed) for request in policy.requests)
    assert max(asked.values()) == 1
    assert METHODS[name].growth.widening is not None or len({prefix for prefix, _ in asked}) == len(asked)
    assert set(scorer.num_scored.values()) == {1}


@pytest.mark.parametrize("name", [name for name in TREE_METHODS if METHODS[name].growth.widening is None])
@pytest.mark.parametrize("wave", [1, 4])
def test_counts_of_parents_and_children_keep_step(name, wave):
    """An inner node was visited when it was expanded and otherwise through its children, less the visit that a child may start with.

    Where ends are backed up when they are new, each is one more visit; where nothing else is, these are all.
    """
    method = METHODS[name]
    evaluation, revisits = method.growth.evaluation, method.selection.revisits_terminals
    waves = not isinstance(method.selection, Beam) and method.options().get("count") != "descents"
    options = {"wave": wave} if waves else {}
    for result in run(name, **options, budget=Budget(num_simulations=15, max_depth=6), problems=PROBLEMS[:4]).values():
        tree = result.tree
        ends = sum(answer is not None for answer in tree.answers)
        if evaluation == "ends":
            assert revisits or tree.visits[0] == ends
            continue
        through = Counter({parent: 0 for parent in tree.parents[1:]})
        for child, parent in reversed(list(enumerate(tree.parents))[1:]):
            # Visits that are not accounted for by an expansion and by what passed through: those that the node was born with.
            own = tree.visits[child] - (1 + through[child] if child in through else 0)
            is_end = method.selection.backs_up_ends and tree.answers[child] is not None
            assert revisits or own in {"children": (1,), "leaf": (is_end,), "best": (0, 1)}[evaluation]
            through[parent] += tree.visits[child] - (evaluation == "children")
            if evaluation == "best" and tree.parents[child - 1] != parent:
                # The first of a family: one sibling was born with a visit.
                through[parent] -= 1
        assert tree.visits[0] == 1 + through[0] == tree.num_simulations + ends * method.selection.backs_up_ends


def branch(prefix, index, seed):
    """Steps a and b, then c; the third ends."""
    text = "".join(map(chr, prefix)).split("\n", 1)[1]
    if len(text) == 6:
        return make_step(f"={text[0]}", stop_reason=StopReason.END)
    return make_step("c.\n" if text else "ab"[index] + ".\n")


def promising_later(prefix):
    """Step b looks better than a, but what follows a is better than what follows b."""
    text = "".join(map(chr, prefix)).split("\n", 1)[1]
    return {"a.\n": 0.4, "b.\n": 0.6, "a.\nc.\n": 0.9, "b.\nc.\n": 0.2}.get(text, 0.5)


def test_a_lookahead_is_scored():
    """With lookahead the beam goes to a for 0.9, without it to b for 0.6; the steps looked at are scored and cost tokens."""
    options = {"policy": branch, "scorer": promising_later, "wave": 1, "num_children": 2}
    once, twice = Budget(num_simulations=1, max_depth=4), Budget(num_simulations=2, max_depth=4)
    assert one("beam", budget=once, **options).tree.values[1:] == pytest.approx([0.4, 0.6])
    ahead = one("beam-lookahead", budget=once, **options).tree
    assert ahead.values[1:] == pytest.approx([0.9, 0.2]) and ahead.scores[1:] == [0.4, 0.6]
    assert (ahead.generated_tokens, ahead.scored_tokens, ahead.policy_calls) == (12, 12, 3)
    assert one("beam", budget=twice, **options).tree.parents[3] == 2
    assert one("beam-lookahead", budget=twice, **options).tree.parents[3] == 1


def test_small_scores_are_not_lost():
    """1e-9 and 2e-9 are both 0 in half precision; here the better one wins, and both are recorded as they are."""

    def policy(prefix, index, seed):
        return make_step(f"={index}", stop_reason=StopReason.END)

    result = one(policy=policy, scorer=lambda ids: 1e-9 * (1 + int(chr(ids[-1]))), num_children=2, answer_rule="best")
    assert result.answer == "1" and result.tree.scores[1:] == pytest.approx([1e-9, 2e-9]) and min(result.tree.values[1:]) > 0


# ---------------------------------------------------------------------------------------------------------------- failures end as data


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_policy_that_never_ends_a_solution_is_cut_by_depth(name):
    """Endless and ever equal steps: the search ends, without an answer, and says where it was cut."""
    result = one(name, policy=lambda prefix, index, seed: make_step("x\n"), budget=Budget(num_simulations=40, max_depth=3))
    assert result.answer is None and max(result.tree.depths) == 3
    assert {reason for reason, depth in zip(result.tree.stop_reasons, result.tree.depths, strict=True) if depth == 3} == {"depth"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_full_context_ends_branches_only(name):
    """Prefixes beyond the context fail; what fits is searched, and the failed nodes carry the message."""
    policy = ScriptedPolicy(propose, max_prefix_tokens=9)
    result = one(name, policy=policy, budget=Budget(num_simulations=30, max_depth=12))
    tree = result.tree
    for node, reason in enumerate(tree.stop_reasons):
        if reason == "error":
            assert "at most 9 tokens" in tree.texts[node] and tree.token_ids[node] == []
    assert len(tree.parents) > 2


@pytest.mark.parametrize("name", sorted(METHODS))
def test_scores_that_are_not_numbers_break_nothing(name):
    """Every second score is NaN: recorded as None, never as a value."""
    result = one(name, scorer=lambda ids: math.nan if sum(ids) % 2 else 0.5, budget=Budget(num_simulations=20, max_depth=5))
    assert all(value is None or not math.isnan(value) for value in result.tree.values)
    assert all(known is None or known == 0.5 for known in result.tree.scores)


def test_failed_rollouts_cost_a_child_its_value_only():
    """Whatever goes beyond the second step fails: the children keep their place, with rollouts worth 0."""
    root = len(CharRenderer().prompt_ids(PROBLEMS[0]))
    policy = ScriptedPolicy(lambda prefix, index, seed: make_step(f"{index}."), fail_when=lambda request: len(request.prefix_ids) > root)
    tree = one(policy=policy, rollouts=2, rollout_mix=0.5, scorer=lambda ids: 0.8, budget=Budget(num_simulations=1)).tree
    assert tree.values[1:] == pytest.approx([0.4] * 4) and tree.stop_reasons[1:] == ["step"] * 4


def test_rollouts_are_graded_in_label_mode():
    """A rollout that reaches the right answer is worth 1, one that does not 0; the PRM has no say at their ends."""

    def policy(prefix, index, seed):
        if len(prefix) == len(CharRenderer().prompt_ids(PROBLEMS[0])):
            return make_step(f"{index}.")
        return make_step(f"={ANSWERS['p0'] if chr(prefix[-2]) == '0' else 'no'}", stop_reason=StopReason.END)

    tree = one(policy=policy, answers=ANSWERS, rollouts=1, num_children=2, scorer=lambda ids: 0.5, budget=Budget(num_simulations=1)).tree
    assert tree.values[1:] == [1.0, 0.0] and tree.outcomes == [None] * 3
