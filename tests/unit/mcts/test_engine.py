"""The engine's relations (what may not change a tree) and its edge cases (what must not break a search)."""

import dataclasses
import gc
import itertools
import json
import math
import subprocess
import sys
from collections import Counter

import pytest

from stepladder.errors import BackendError, ConfigError
from stepladder.interfaces import StepResult
from stepladder.mcts.methods import METHODS
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer, error_step, make_step
from stepladder.types import Budget, Step, StopReason, TreeRecord, derive_seed, seed_family
from tests.searches import ANSWERS, PROBLEMS, PROVENANCE, engine, one, propose, run, score

KINDS = (
    *("mcts", "uct", "gumbel", "x1:paper", "mcts-dpo", "rest-mcts"),
    *("beam", "beam-lookahead", "dvts:paper", "tot-dfs", "treepo", "q-star", "particle-filter", "vas", "best-of-n", "majority", "greedy"),
)
"""A method of every kind."""


def value_of(name, setting):
    """Return a setting of a method, its default where the method does not take it."""
    return METHODS[name].all_settings()[setting]


@pytest.mark.parametrize("method", KINDS)
def test_a_tree_does_not_depend_on_its_company(method):
    """Alone, among 50, with 1, 7 or 256 rows, in order or shuffled: the same result, to the last bit."""
    budget = Budget(num_simulations=10, max_depth=5, max_tokens=90)
    expected = run(method, problems=PROBLEMS, budget=budget)
    assert run(method, problems=PROBLEMS[::-1], budget=budget, max_trees=7, arrival_seed=0) == expected
    assert run(method, problems=PROBLEMS, budget=budget, max_trees=1, arrival_seed=1) == expected
    for problem in PROBLEMS[::10]:
        assert run(method, problems=[problem], budget=budget, arrival_seed=2) == {problem.id: expected[problem.id]}


@pytest.mark.parametrize("method", KINDS)
def test_solve_mode_never_sees_an_answer(method):
    """Solve mode holds no verifier; label mode only values nodes, and a search that reads no values does not change with the answers."""
    solved = run(method)
    assert all(set(result.tree.outcomes) == {None} for result in solved.values())
    if METHODS[method].samples_solutions:
        shuffled = dict(zip(ANSWERS, [*list(ANSWERS.values())[1:], "?"], strict=True))
        for answers in (ANSWERS, shuffled):
            labelled = run(method, answers=answers)
            assert {key: result.answer for key, result in labelled.items()} == {key: result.answer for key, result in solved.items()}


def test_seed_round_and_problem_decide_the_tree():
    """Each of the three changes the samples; the policy version does not."""
    base = one()
    other_seed, other_round, other_version = (
        dataclasses.replace(PROVENANCE, **change) for change in ({"seed": 4}, {"round": 1}, {"policy_version": 9})
    )
    trees = []
    for provenance in (other_seed, other_round, other_version):
        changed = engine()
        changed.provenance = provenance
        trees.append(next(changed.search(PROBLEMS[:1])).tree.token_ids)
    assert base.tree.token_ids not in trees[:2] and trees[2] == base.tree.token_ids
    assert run(problems=PROBLEMS[:2])["p1"].tree.token_ids != base.tree.token_ids


def test_a_search_gives_the_same_bytes_in_a_fresh_process():
    """Nothing depends on hash randomisation, addresses or what ran before."""
    code = (
        "import json; from tests.searches import run; "
        "print(json.dumps([result.tree.to_dict() for result in run('mcts', wave=3, answers={f'p{i}': '1' for i in range(50)}).values()]))"
    )
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert outputs[0] == outputs[1]
    here = [result.tree.to_dict() for result in run("mcts", wave=3, answers={f"p{i}": "1" for i in range(50)}).values()]
    assert json.loads(outputs[0]) == here


@pytest.mark.parametrize("wave", [1, 4])
@pytest.mark.parametrize("evaluation", ["children", "leaf"])
@pytest.mark.parametrize("terminals", ["skip", "revisit"])
def test_visit_count_identity(wave, evaluation, terminals):
    """A node's visits are its own and those of its children since they were born.

    Each expansion visits the leaf once and creates each child with one visit (``children``) or none (``leaf``), and a revisit adds one to
    the terminal and each ancestor.
    """
    for result in run("mcts", wave=wave, evaluation=evaluation, terminals=terminals).values():
        tree = result.tree
        born = 1 if evaluation == "children" else 0
        for node in range(len(tree.parents)):
            children = [child for child, parent in enumerate(tree.parents) if parent == node]
            below = sum(tree.visits[child] - born for child in children)
            own = bool(children) + (born if node else 0)
            if children:
                assert tree.visits[node] == own + below
        assert tree.visits[0] == tree.num_simulations


@pytest.mark.parametrize("method", ["best-of-n", "majority"])
def test_sampling_keeps_one_leaf_per_draw_in_the_order_of_the_draws(method):
    """Draws share their first steps but never their last, so the leaves in order of index are the draws; visits count draws."""
    policy = ScriptedPolicy(propose)
    tree = one(method, policy=policy, budget=Budget(num_simulations=20, max_depth=4), wave=8).tree
    leaves = [node for node in range(len(tree.parents)) if node not in tree.parents]
    assert len(leaves) == tree.visits[0] == 20
    direct = ScriptedPolicy(propose)
    direct.submit(policy.requests)
    draws = [tuple(i for step in steps for i in step.token_ids) for result in direct.collect() for steps in result.samples]
    assert [path_ids(tree, leaf) for leaf in leaves] == draws
    assert [request.num_samples for request in policy.requests] == [8, 8, 4]
    for node in range(1, len(tree.parents)):
        children = [child for child, parent in enumerate(tree.parents) if parent == node]
        assert tree.visits[node] == (sum(tree.visits[child] for child in children) if children else 1)
        assert tree.priors[node] == tree.visits[node] / tree.visits[tree.parents[node]]


def path_ids(tree: TreeRecord, node: int) -> tuple:
    """Return the tokens from the root to a node."""
    return () if node == 0 else path_ids(tree, tree.parents[node]) + tuple(tree.token_ids[node])


def test_the_first_draws_do_not_depend_on_how_many_follow():
    """With one wave size, the draws of a smaller budget are the first draws of a larger one."""
    few, many = (one("best-of-n", budget=Budget(num_simulations=n, max_depth=4)).tree for n in (6, 19))
    leaves = [[path_ids(tree, node) for node in range(1, len(tree.parents)) if node not in tree.parents] for tree in (few, many)]
    assert leaves[0] == leaves[1][:6]


def test_values_stay_inside_the_range_of_the_leaves():
    """Means of returns in [0.2, 0.7] stay there, whatever the rules."""
    for backup, evaluation, wave in itertools.product(["mean", "child-mean"], ["children", "leaf"], [1, 3]):
        results = run(
            scorer=lambda ids: 0.2 + score(ids) / 2,
            backup=backup,
            evaluation=evaluation,
            wave=wave,
            budget=Budget(num_simulations=16, max_depth=99),
        )
        values = [value for result in results.values() for value in result.tree.values if value is not None]
        assert len(values) > 50 and all(0.2 - 1e-6 <= value <= 0.7 + 1e-6 for value in values)


@pytest.mark.parametrize("method", KINDS)
def test_budgets_are_never_exceeded(method):
    """Simulations, depth and step tokens are hard caps; tokens overshoot by less than one wave."""
    for budget in (Budget(num_simulations=7, max_depth=3, max_step_tokens=2), Budget(num_simulations=99, max_tokens=40, max_depth=6)):
        for result in run(method, budget=budget).values():
            tree = result.tree
            assert tree.num_simulations <= budget.num_simulations
            assert max(tree.depths) <= budget.max_depth
            assert max(len(ids) for ids in tree.token_ids) <= budget.max_step_tokens
            spent = [tokens for tokens, _ in result.anytime]
            assert spent == sorted(spent) and spent[-1] == tree.generated_tokens
            if budget.max_tokens is not None:
                assert all(tokens < budget.max_tokens for tokens in spent[:-1])


def test_a_search_stops_when_its_time_is_up():
    """At least one wave is made, however short the time; with enough of it nothing changes."""
    assert one(budget=Budget(num_simulations=50, max_seconds=1e-9)).tree.num_simulations == 1
    assert one(budget=Budget(num_simulations=50, max_seconds=1e-9)).stop_reason == StopReason.SECONDS
    assert one(budget=Budget(num_simulations=9, max_seconds=3600)) == one(budget=Budget(num_simulations=9))
    for seconds in (0, -1.0, True, math.nan):
        with pytest.raises(ConfigError, match="max_seconds must be a number > 0"):
            one(budget=Budget(max_seconds=seconds))


def test_token_budgets_shorten_the_wave():
    """12 tokens an expansion: after the root's, 30 tokens leave room for 2 leaves of a wave of 8, then for 1."""
    result = one(policy=lambda prefix, index, seed: make_step(f"{index}ab"), budget=Budget(max_tokens=42, max_depth=9), wave=8)
    assert [tokens for tokens, _ in result.anytime] == [12, 36, 48]
    assert result.stop_reason == StopReason.TOKENS


@pytest.mark.parametrize("method", [name for name in KINDS if value_of(name, "rollouts") == 0 and value_of(name, "groups") == 1])
def test_each_new_step_is_scored_once(method):
    """Whatever is merged, shared or drawn again, no step is sent to the scorer twice, and every node with tokens has its score."""
    scorer = TableScorer(score)
    results = run(method, scorer=scorer, wave=3)
    assert set(scorer.num_scored.values()) == {1}
    for result in results.values():
        tree = result.tree
        prompt = tuple(tree.prompt_ids)
        assert tree.scores[1:] == [score(prompt + path_ids(tree, node)) for node in range(1, len(tree.parents))]
        distinct = {path_ids(tree, node): len(tree.token_ids[node]) for node in range(1, len(tree.parents))}
        assert tree.scored_tokens == sum(distinct.values())


def test_anytime_answers_are_those_of_a_smaller_budget():
    """The answer noted after wave i is the one that the search gives when it stops there."""
    full = one(budget=Budget(num_simulations=12, max_depth=6))
    assert len(full.anytime) == 12
    for count in (1, 5, 11):
        part = one(budget=Budget(num_simulations=count, max_depth=6))
        assert (part.tree.generated_tokens, part.answer) == full.anytime[count - 1]


def test_label_mode_values_ends_by_their_outcome():
    """Terminals are worth 1 or 0, cut ones 0, in records and in values; open nodes keep their score."""
    for result in run(answers=ANSWERS, budget=Budget(num_simulations=30, max_depth=3)).values():
        tree = result.tree
        for node, reason in enumerate(tree.stop_reasons):
            if reason == StopReason.END:
                assert tree.outcomes[node] == float(tree.answers[node] == ANSWERS[tree.problem_id]) == tree.values[node]
            elif reason == StopReason.DEPTH:
                assert (tree.outcomes[node], tree.values[node], tree.answers[node]) == (0.0, 0.0, None)
            else:
                assert tree.outcomes[node] is None
    assert any(1.0 in result.tree.outcomes for result in run(answers=ANSWERS).values())


def test_verifier_is_asked_in_batches_and_once_per_answer():
    """Three possible answers per problem: at most three gradings each, in no more calls than waves."""
    searcher = engine(answers=ANSWERS, budget=Budget(num_simulations=20))
    graded = []
    grade = searcher.verifier.grade
    searcher.verifier.grade = lambda answers: (graded.append(list(answers)), grade(answers))[1]
    list(searcher.search(PROBLEMS))
    asked = [pair for batch in graded for pair in batch]
    assert len(set(asked)) == len(asked) <= 3 * len(PROBLEMS)
    assert len(graded) <= 20


def always(text, reason=StopReason.STEP):
    """Return a policy whose samples differ by their index only."""
    return lambda prefix, index, seed: make_step(f"{index}{text}", stop_reason=reason)


def test_all_children_terminal_exhausts_the_tree():
    """Nothing is left to expand after the root, with and without revisits."""
    for terminals in ("skip", "revisit"):
        result = one(policy=always("=7", StopReason.END), terminals=terminals)
        assert (result.stop_reason, result.tree.num_simulations, result.answer) == (StopReason.EXHAUSTED, 1, "7")
        assert len(result.tree.parents) == 5


def test_one_child_that_ends_is_the_whole_tree():
    """K = 1: a chain, which is exhausted at its end."""

    def policy(prefix, index, seed):
        return make_step("ab") if len(prefix) < 9 else make_step("=4", stop_reason=StopReason.END)

    result = one(policy=policy, num_children=1)
    assert result.tree.parents == [-1, 0, 1, 2, 3]
    assert (result.answer, result.answer_node, result.stop_reason) == ("4", 4, StopReason.EXHAUSTED)


def test_revisited_terminals_cost_no_tokens():
    """With one open branch of low value and one good terminal, revisits add visits but neither nodes nor tokens."""

    def policy(prefix, index, seed):
        return make_step("=1", stop_reason=StopReason.END) if index == 0 and len(prefix) == 3 else make_step("x\n")

    def low(prefix):
        return 0.9 if prefix[-2:] == (ord("="), ord("1")) else 0.0

    result = one(
        policy=policy,
        scorer=low,
        num_children=2,
        terminals="revisit",
        c=0.1,
        prior="uniform",
        answer_rule="weighted-vote",
        budget=Budget(num_simulations=9, max_depth=9),
    )
    terminal = result.tree.answers.index("1")
    assert result.tree.visits[terminal] > 4
    assert result.tree.policy_calls + result.tree.visits[terminal] - 1 == result.tree.num_simulations == 9
    assert result.votes == {"1": pytest.approx(0.9 * result.tree.visits[terminal])}


def test_equal_scores_explore_in_slot_order():
    """When every score is equal, the first slot of each level comes first."""
    result = one(policy=always("x\n"), scorer=lambda ids: 0.5, num_children=2, prior="uniform", budget=Budget(num_simulations=4))
    assert result.tree.parents == [-1, 0, 0, 1, 1, 2, 2, 3, 3]


def test_a_nan_score_is_no_score():
    """NaN and None alike are recorded as None and bring no return."""
    for missing in (math.nan, None):
        result = one(scorer=lambda ids, missing=missing: missing, policy=always("x\n"), budget=Budget(num_simulations=5))
        assert set(result.tree.scores) == {None} and set(result.tree.values) == {None}
        assert result.tree.visits[0] == 5


def test_without_a_scorer_only_ends_have_values():
    """Solve mode without a PRM: visits count, values stay unknown, and the vote is by the prior mass of the paths."""
    for result in run(scorer=None, budget=Budget(num_simulations=30, max_depth=99)).values():
        assert result.tree.scored_tokens == 0 and set(result.tree.scores) == {None} and set(result.tree.values) == {None}
        masses = [1.0]
        for parent, prior in zip(result.tree.parents[1:], result.tree.priors[1:], strict=True):
            masses.append(masses[parent] * prior)
        by_answer = {answer: 0.0 for answer in result.tree.answers if answer is not None}
        for answer, mass in zip(result.tree.answers, masses, strict=True):
            if answer is not None:
                by_answer[answer] += mass
        assert result.votes == pytest.approx(by_answer)
    labelled = run(scorer=None, answers=ANSWERS, budget=Budget(num_simulations=30)).values()
    for result in labelled:
        tree = result.tree
        ends = [outcome for outcome in tree.outcomes if outcome is not None]
        assert (tree.values[0] is None) == (not ends) and all(0 <= value <= 1 for value in tree.values if value is not None)


def test_equal_samples_become_one_child():
    """Samples A A B A: two children in order of appearance, priors 3/4 and 1/4, all tokens counted, the leaf worth the samples' mean."""
    table = {"A\n": 0.2, "B\n": 0.6}

    def policy(prefix, index, seed):
        return make_step("B\n" if index == 2 else "A\n")

    result = one(policy=policy, scorer=lambda ids: table["".join(map(chr, ids[-2:]))], budget=Budget(num_simulations=1))
    assert result.tree.texts == ["", "A\n", "B\n"]
    assert result.tree.priors == [1.0, 0.75, 0.25]
    assert result.tree.generated_tokens == 8 and result.tree.scored_tokens == 4
    assert result.tree.values == [pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.6)]
    assert result.tree.visits == [1, 1, 1]


def test_a_failed_request_is_one_branch_and_nothing_else():
    """The leaf whose request fails gets one failed child with the message; its siblings and the other problems go on."""
    prompt = CharRenderer().prompt_ids(PROBLEMS[0])

    def fails(request):
        return (
            len(request.prefix_ids) > len(prompt)
            and request.prefix_ids[: len(prompt)] == prompt
            and request.prefix_ids[len(prompt)] == ord("a")
        )

    policy = ScriptedPolicy(propose, fail_when=fails)
    results = run(policy=policy, answers=ANSWERS)
    tree = results["p0"].tree
    failed = [node for node, reason in enumerate(tree.stop_reasons) if reason == StopReason.ERROR]
    assert failed
    for node in failed:
        assert (tree.token_ids[node], tree.texts[node], tree.outcomes[node], tree.values[node]) == ([], "scripted failure", 0.0, 0.0)
        assert tree.parents.count(tree.parents[node]) == 1 and tree.texts[tree.parents[node]][0] == "a"
    assert len(tree.parents) > 20
    expected = run(answers=ANSWERS)
    assert all(results[key] == expected[key] for key in results if key != "p0")


@pytest.mark.parametrize("method", ["mcts", "beam", "majority"])
def test_a_policy_that_fails_every_request_exhausts_every_tree(method):
    """No answer, no exception, and an end."""
    policy = ScriptedPolicy(propose, fail_when=lambda request: True)
    result = one(method, policy=policy, budget=Budget(num_simulations=6))
    assert result.answer is None and result.answer_node is None and result.votes == {}
    assert result.stop_reason == (StopReason.SIMULATIONS if method == "majority" else StopReason.EXHAUSTED)
    assert result.tree.generated_tokens == 0 and set(result.tree.stop_reasons[1:]) == {"error"}


def test_a_step_without_tokens_is_a_failed_step():
    """It would never end a solution; the record says what happened."""
    for method in ("mcts", "majority"):
        empty = Step(token_ids=(), logps=(), text="", stop_reason=StopReason.STEP)
        result = one(method, policy=lambda prefix, index, seed, empty=empty: empty, budget=Budget(num_simulations=2, max_depth=3))
        assert result.tree.stop_reasons[1] == "error" and result.tree.texts[1] == "empty step with stop reason step"
        assert set(result.tree.depths) == {0, 1}


def test_cut_steps_are_truncated_not_terminal():
    """LENGTH and DEPTH have no answer even where the text states one, and are never expanded."""
    result = one(policy=always("=7", StopReason.LENGTH))
    assert (result.answer, result.stop_reason) == (None, StopReason.EXHAUSTED)
    assert result.tree.stop_reasons[1:] == ["length"] * 4 and result.tree.values[1:] == [0.0] * 4
    result = one(policy=always("=7"), budget=Budget(max_depth=1))
    assert result.tree.stop_reasons[1:] == ["depth"] * 4 and result.answer is None


def test_a_terminal_without_a_readable_answer_is_worth_nothing():
    """The PRM's score stays in the record, the return is 0."""
    result = one(policy=always("?", StopReason.END), scorer=lambda ids: 0.9)
    assert result.tree.scores[1:] == [0.9] * 4 and result.tree.values[1:] == [0.0] * 4 and result.tree.answers[1:] == [None] * 4


@pytest.mark.parametrize("where", ["policy", "scorer"])
def test_a_backend_that_raises_stops_the_search(where):
    """The exception comes through as it is; results that were finished before have been handed out."""
    policy = ScriptedPolicy(propose, raise_after=30 if where == "policy" else None)
    scorer = TableScorer(score, raise_after=30 if where == "scorer" else None)
    got = []
    with pytest.raises(BackendError, match="raises after 30"):
        got.extend(engine(policy=policy, scorer=scorer, max_trees=1).search(PROBLEMS))


class _Silent(ScriptedPolicy):
    def collect(self):
        return []


class _Stranger(ScriptedPolicy):
    def collect(self):
        return [StepResult(ticket=999, samples=())]


class _Short(ScriptedPolicy):
    def collect(self):
        return [dataclasses.replace(result, samples=result.samples[1:]) for result in super().collect()]


@pytest.mark.parametrize(("backend", "message"), [(_Silent, "got none for 1 requests"), (_Stranger, "got 999"), (_Short, "check_policy")])
def test_a_backend_that_breaks_the_protocol_is_named(backend, message):
    """Silence, foreign tickets and missing samples are errors, not endless loops."""
    with pytest.raises(BackendError, match=message):
        one(policy=backend(propose))


def test_a_scorer_with_missing_scores_is_named():
    """One score per branch and step, or an error that says so."""

    class Broken(TableScorer):
        def collect(self):
            return [dataclasses.replace(result, scores=result.scores[1:]) for result in super().collect()]

    with pytest.raises(BackendError, match="check_scorer"):
        one(scorer=Broken(score))


@pytest.mark.parametrize(
    ("budget", "max_trees", "name"),
    [
        (Budget(num_simulations=0), 1, "num_simulations"),
        (Budget(max_tokens=0), 1, "max_tokens"),
        (Budget(max_depth=0), 1, "max_depth"),
        (Budget(max_step_tokens=-1), 1, "max_step_tokens"),
        (Budget(), 0, "max_trees"),
    ],
)
def test_impossible_budgets_are_refused(budget, max_trees, name):
    """One sentence before any work."""
    with pytest.raises(ConfigError, match=f"{name} must be a whole number >= 1"):
        engine(budget=budget, max_trees=max_trees)


def test_no_problems_no_results():
    """An empty stream is an empty search."""
    assert run(problems=[]) == {}


def test_problems_are_pulled_as_rows_become_free():
    """Two rows: never more than two problems ahead of the results."""
    pulled = []

    def stream():
        for problem in PROBLEMS[:9]:
            pulled.append(problem.id)
            yield problem

    done = 0
    for _ in engine(max_trees=2).search(stream()):
        done += 1
        assert len(pulled) <= done + 3
    assert done == len(pulled) == 9


def test_progress_adds_up():
    """Figures never fall, and the last event holds the totals."""
    events = []
    results = list(engine(answers=ANSWERS, max_trees=4).search(PROBLEMS[:10], on_progress=events.append))
    assert [event.problems_done for event in events] == sorted(event.problems_done for event in events)
    assert [event.generated_tokens for event in events] == sorted(event.generated_tokens for event in events)
    assert events[-1].problems_done == 10
    assert events[-1].generated_tokens == sum(result.tree.generated_tokens for result in results)
    assert events[-1].solved == sum(1.0 in result.tree.outcomes for result in results) > 0


def test_an_engine_can_search_again():
    """A second search on the same engine gives the same results, and the timings add up."""
    searcher = engine()
    assert list(searcher.search(PROBLEMS[:3])) == list(searcher.search(PROBLEMS[:3]))
    stats = searcher.stats
    assert stats.policy_s > 0 and stats.scorer_s > 0 and stats.verifier_s == 0
    assert stats.engine_s > 0 and stats.total_s == pytest.approx(stats.engine_s + stats.policy_s + stats.scorer_s)


def test_scores_are_requested_in_large_batches():
    """With everything delivered at once, the scorer sees one batch per turn, not one per tree."""
    scorer = TableScorer(score)
    sizes = []
    submit = scorer.submit
    scorer.submit = lambda requests: (sizes.append(len(requests)), submit(requests))[1]
    run(scorer=scorer, problems=PROBLEMS, budget=Budget(num_simulations=4, max_depth=9))
    assert len(sizes) == 4 and sizes[0] == 50


def test_greedy_is_one_deterministic_solution():
    """Whatever the budget allows, temperature 0 draws once."""
    policy = ScriptedPolicy(propose)
    result = one("greedy", policy=policy, budget=Budget(num_simulations=40, max_depth=30))
    assert [(request.temperature, request.num_samples, request.max_steps) for request in policy.requests] == [(0.0, 1, 30)]
    assert result.stop_reason == StopReason.EXHAUSTED and len(result.votes) <= 1


def test_beam_expands_its_width_and_narrows_as_solutions_end():
    """Width 2: at depth 1 the two best of eight go on; an ended one takes its place in the beam with it."""

    def policy(prefix, index, seed):
        depth = prefix.count(ord("\n"))
        return make_step(f"{index}={index}", stop_reason=StopReason.END) if depth == 3 and index < 2 else make_step(f"{index}\n")

    def by_index(prefix):
        return 0.9 - int(chr(next(i for i in reversed(prefix) if chr(i).isdigit()))) / 10

    tree = one("beam", policy=policy, scorer=by_index, wave=2, num_children=3, budget=Budget(max_depth=5)).tree
    per_depth = [sum(tree.depths[parent] == depth for parent in set(tree.parents[1:])) for depth in range(4)]
    assert per_depth == [1, 2, 2, 0]
    assert tree.parents.count(0) == 6


class _Tallied(ScriptedPolicy):
    """A scripted policy that fails for some samples, says which, and counts what it gives per problem."""

    def __init__(self, *, shuffle_seed=None):
        super().__init__(_failing, shuffle_seed=shuffle_seed)
        self.samples, self.failed = Counter(), Counter()

    def collect(self):
        prompts = {request.ticket: request.prefix_ids[:2] for request in self.requests}
        results = super().collect()
        for result in results:
            self.samples[prompts[result.ticket]] += len(result.samples)
            self.failed[prompts[result.ticket]] += sum(sample[-1].stop_reason == StopReason.ERROR for sample in result.samples)
        return results


def _failing(prefix_ids, index, seed):
    unlucky = derive_seed("unlucky", str(prefix_ids), index) % 4 == 0
    return error_step(f"failed after {len(prefix_ids)} tokens") if unlucky else propose(prefix_ids, index, seed)


@pytest.mark.parametrize("method", [*KINDS, "rstar"])
def test_every_failed_sample_is_counted_whatever_the_order_of_arrival(method):
    """A result's failures are those that the policy gave, rollouts and merged samples included, and their first message is fixed."""
    budget = Budget(num_simulations=12, max_depth=4)
    policy = _Tallied()
    results = run(method, policy=policy, budget=budget)
    for result in results.values():
        prompt = tuple(result.tree.prompt_ids[:2])
        failures = result.failures
        assert (failures.num_samples, failures.num_failed) == (policy.samples[prompt], policy.failed[prompt])
        assert (failures.first_message is None) == (failures.num_failed == 0)
    assert any(result.failures.num_failed for result in results.values())
    shuffled = run(method, policy=_Tallied(shuffle_seed=5), budget=budget, arrival_seed=5)
    assert {key: result.failures for key, result in shuffled.items()} == {key: result.failures for key, result in results.items()}


def test_a_search_whose_requests_all_fail_says_so():
    """Then there is no answer because nothing was asked, and not because the search found none."""
    policy = ScriptedPolicy(propose, fail_when=lambda request: True)
    for method in ("mcts", "beam", "best-of-n"):
        for result in run(method, policy=policy).values():
            assert result.failures.all_failed
            assert result.failures.sentence().endswith("samples failed, the first with: scripted failure")
    assert not run("mcts")["p0"].failures.all_failed


def test_error_steps_do_not_disturb_a_sample_of_several_steps():
    """A draw that fails on its way keeps the steps before the failure."""

    def policy(prefix, index, seed):
        return error_step("context is full") if len(prefix) > 5 else make_step("ab\n")

    result = one("majority", policy=policy, budget=Budget(num_simulations=2))
    assert result.tree.stop_reasons == ["step", "step", "error", "error"]
    assert result.tree.texts[2] == "context is full" and result.tree.parents == [-1, 0, 1, 1]


def test_path_vote_by_hand():
    """A path weighs its prior mass times its score: 3/4 * 0.4 for "1" beats 1/4 * 0.9 for "2", which a vote that ignores priors prefers."""

    def policy(prefix, index, seed):
        text = "".join(map(chr, prefix))
        if text.endswith("a\n"):
            return make_step("=1", stop_reason=StopReason.END)
        if text.endswith("b\n"):
            return make_step("=2", stop_reason=StopReason.END)
        return make_step("b\n" if index == 3 else "a\n")

    def by_end(prefix):
        return {ord("1"): 0.4, ord("2"): 0.9}.get(prefix[-1], 0.5)

    budget = Budget(num_simulations=3, max_depth=4)
    by_path = one(policy=policy, scorer=by_end, budget=budget, answer_rule="path-vote")
    by_count = one(policy=policy, scorer=by_end, budget=budget, answer_rule="weighted-vote")
    assert by_path.votes == pytest.approx({"1": 0.3, "2": 0.225})
    assert by_path.answer == "1"
    assert by_count.votes == pytest.approx({"2": 4 * 0.9, "1": 4 * 0.4})
    assert by_count.answer == "2"


def test_a_family_of_seeds_is_derive_seed():
    """Hashing the first parts once changes no seed, whatever the parts are, and no derivation disturbs the next one."""
    family = seed_family(3, "p\x1f1")
    for more in ((0,), (7, 2), ("x",)):
        assert family(*more) == derive_seed(3, "p\x1f1", *more)
    assert family(7) == derive_seed(3, "p\x1f1", 7)


def test_the_garbage_collector_is_left_as_it_was():
    """It rests while the engine works, runs while the consumer does, and stays off where it was off."""
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            for _ in engine(max_trees=1).search(PROBLEMS[:2]):
                assert gc.isenabled() == enabled
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


class _Noting(ScriptedPolicy):
    def __init__(self, propose):
        super().__init__(propose)
        self.kinds = set()

    def submit(self, requests):
        self.kinds |= {request.parent_action for request in requests}
        super().submit(requests)


@pytest.mark.parametrize(
    ("method", "options", "kinds"), [("restart", {"draw_steps": 1}, {None}), ("majority", {}, {None}), ("mcts", {}, {""})]
)
def test_only_children_of_a_node_ask_for_a_kind_of_step(method, options, kinds):
    """A policy with actions leaves draws without a kind, those of one step included; a child knows the kind of its parent's step."""
    policy = _Noting(propose)
    run(method, policy=policy, budget=Budget(num_simulations=6, max_depth=3), **options)
    assert policy.kinds == kinds
