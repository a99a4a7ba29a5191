"""Several kinds of step: which samples are of which kind, what their prompts are, and what a tree keeps of it."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from stepladder.interfaces import Observation, StepRequest, StepResult, ToolCall, collect_all
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.graph import to_networkx
from stepladder.mcts.methods import resolve_method
from stepladder.policy.actions import Action, ActionPolicy, apportion
from stepladder.policy.observations import ObservationStore
from stepladder.policy.tools import ToolPolicy, ToolSettings
from stepladder.testing import CharRenderer, ExactVerifier, ScriptedPolicy, TableScorer, make_step
from stepladder.types import Budget, Problem, Step, StopReason, TreeRecord, derive_seed
from tests.searches import ANSWERS, PROBLEMS, PROVENANCE, propose, score

HALF, THIRD, QUARTER = Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)


@pytest.mark.parametrize(
    ("shares", "count", "offset", "expected"),
    [
        ([HALF, QUARTER, QUARTER], 4, Fraction(0), [2, 1, 1]),
        ([HALF, QUARTER, QUARTER], 4, Fraction(99, 100), [2, 1, 1]),
        # (0 + u) / 1 lies in the first half for u < 1/2, else in the second.
        ([HALF, HALF], 1, Fraction(49, 100), [1, 0]),
        ([HALF, HALF], 1, HALF, [0, 1]),
        # Points 0.1, 0.35, 0.6, 0.85.
        ([THIRD] * 3, 4, Fraction(4, 10), [1, 2, 1]),
        ([Fraction("0.1"), Fraction("0.9")], 10, Fraction(7, 10), [1, 9]),
        # Shares of those that remain keep their proportion.
        ([QUARTER, QUARTER], 2, Fraction(1, 3), [1, 1]),
    ],
)
def test_samples_are_divided_by_hand(shares: list[Fraction], count: int, offset: Fraction, expected: list[int]) -> None:
    """Sample i goes to the action whose part of the unit interval holds (i + offset) / count."""
    assert apportion(shares, count, offset=offset) == expected


def test_shares_are_met_on_average_and_never_missed_by_a_whole_sample() -> None:
    """Over all offsets k / 1000 the mean number is the exact part; every single number is a neighbour of it."""
    shares, count = [Fraction("0.4"), Fraction("0.35"), Fraction("0.25")], 6
    found = [apportion(shares, count, offset=Fraction(k, 1000)) for k in range(1000)]
    for place, share in enumerate(shares):
        numbers = [counts[place] for counts in found]
        assert Fraction(sum(numbers), 1000) == share * count and all(abs(number - share * count) < 1 for number in numbers)
    assert all(sum(counts) == count for counts in found)


class Prompts(CharRenderer):
    """Prompts with a text after the question, as an action has them."""

    def __init__(self, text: str) -> None:
        self.text = text

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the question and the text."""
        return self.encode(f"{problem.question}{self.text}\n")

    def encode_text(self, text: str, *, place: str) -> tuple[int, ...]:
        """Return the code points of a text."""
        return self.encode(text)


PLAIN = CharRenderer()


def actions(**options: Any) -> list[Action]:
    """A usual step, a step after an instruction in half as many samples, and the rest of the solution."""
    return [
        Action(name="step", share=HALF, prompt=Prompts("").prompt_ids),
        Action(name="ask", share=QUARTER, prompt=Prompts(" ask!").prompt_ids, **options),
        Action(name="finish", share=QUARTER, prompt=Prompts(" finish!").prompt_ids, max_steps=9),
    ]


def write(prefix_ids: tuple[int, ...], index: int, seed: int) -> Step:
    """Letters that say after which prompt a step was sampled; after two lines the answer."""
    text = "".join(map(chr, prefix_ids))
    kind = "f" if "finish!" in text else "a" if "ask!" in text else "s"
    if text.count("\n") >= 3:
        return make_step("=1", stop_reason=StopReason.END)
    return make_step(f"{kind}{derive_seed(index, seed) % 100}\n")


def ask(policy: Any, **options: Any) -> StepResult:
    base = {"ticket": 5, "prefix_ids": PLAIN.prompt_ids(PROBLEMS[0]), "num_samples": 8, "seed": 1, "question": PROBLEMS[0].question}
    (result,) = collect_all(policy, [StepRequest(**(base | {"parent_action": "", "given": ((0, 3),)} | options))])
    assert result.ticket == 5
    return result


def test_a_node_is_sampled_after_the_prompt_of_every_action() -> None:
    """Four, two and two of eight samples; later tokens follow each prompt; the rest of a solution is one step that ends it."""
    inner = ScriptedPolicy(write)
    policy = ActionPolicy(inner, PLAIN.prompt_ids, actions())
    steps = [step for (step,) in ask(policy, prefix_ids=(*PLAIN.prompt_ids(PROBLEMS[0]), *map(ord, "x\n"))).samples]
    assert [step.action for step in steps] == ["step"] * 4 + ["ask"] * 2 + ["finish"] * 2
    assert [step.text[0] for step in steps] == list("ssssaaff")
    assert ["".join(map(chr, request.prefix_ids)) for request in inner.requests] == ["q0\nx\n", "q0 ask!\nx\n", "q0 finish!\nx\n"]
    assert [request.given for request in inner.requests] == [((0, 3),), ((0, 8),), ((0, 11),)]
    assert len({request.seed for request in inner.requests}) == 3
    last = steps[-1]
    assert last.text.endswith("\n=1") and last.stop_reason == StopReason.END
    assert last.token_ids == tuple(map(ord, last.text)) and len(last.logps) == len(last.token_ids)


def test_samples_that_are_no_children_and_other_prompts_have_no_kind() -> None:
    """Rollouts, whole solutions and prompts of conversations go to the policy unchanged."""
    inner = ScriptedPolicy(write)
    policy = ActionPolicy(inner, PLAIN.prompt_ids, actions())
    other = tuple(map(ord, "another prompt\n"))
    for options in ({"parent_action": None, "max_steps": 5}, {"prefix_ids": other}, {"question": ""}):
        assert {step.action for steps in ask(policy, **options).samples for step in steps} == {""}
    assert [request.num_samples for request in inner.requests] == [8, 8, 8] and inner.requests[1].prefix_ids == other


def test_an_action_with_conditions_gives_its_share_to_the_others() -> None:
    """After a step, two thirds and a third of six samples; after a question of its own, all three take part."""
    policy = ActionPolicy(ScriptedPolicy(write), PLAIN.prompt_ids, actions(after=("start", "ask")))
    assert Counter(step.action for (step,) in ask(policy, num_samples=6, parent_action="step").samples) == {"step": 4, "finish": 2}
    for parent in ("", "ask"):
        assert Counter(step.action for (step,) in ask(policy, parent_action=parent).samples) == {"step": 4, "ask": 2, "finish": 2}


def test_a_failed_sample_keeps_its_message_and_a_dropped_request_gives_no_result() -> None:
    """The failed action's samples fail alone; a request that is cancelled leaves the others alone."""
    inner = ScriptedPolicy(write, fail_when=lambda request: len(request.prefix_ids) == 8)
    policy = ActionPolicy(inner, PLAIN.prompt_ids, actions())
    steps = [step for (step,) in ask(policy).samples]
    assert [step.action for step in steps if step.stop_reason == StopReason.ERROR] == ["ask", "ask"]
    request = StepRequest(ticket=1, prefix_ids=PLAIN.prompt_ids(PROBLEMS[0]), num_samples=4, seed=1, question="q0", parent_action="")
    other = StepRequest(ticket=2, prefix_ids=PLAIN.prompt_ids(PROBLEMS[1]), num_samples=4, seed=1, question="q1", parent_action="")
    policy.submit([request, other])
    policy.cancel([1])
    assert [result.ticket for result in policy.collect()] == [2] and policy.collect() == []


def search(method: str, *, shuffle: int | None = None, max_trees: int = 256, tool: Any = None) -> dict[str, TreeRecord]:
    policy: Any = ActionPolicy(ScriptedPolicy(propose, shuffle_seed=shuffle), PLAIN.prompt_ids, actions()[:2])
    if tool is not None:
        policy = ToolPolicy(policy, tool, Prompts(""), ToolSettings(form="[{output}]\n"), ObservationStore())
    engine = SearchEngine(
        policy=policy,
        scorer=TableScorer(score, shuffle_seed=shuffle),
        renderer=PLAIN,
        method=resolve_method(method),
        budget=Budget(num_simulations=10, max_depth=5),
        provenance=PROVENANCE,
        verifier=ExactVerifier(ANSWERS),
        max_trees=max_trees,
    )
    return {result.problem_id: result.tree for result in engine.search(PROBLEMS[:8])}


@pytest.mark.parametrize("method", ["mcts", "beam", "rest-mcts"])
def test_trees_keep_the_kind_and_nothing_of_the_prompt(method: str) -> None:
    """Two thirds of the nodes are usual steps; trees depend on nothing that runs beside; prompts and tokens are the plain ones."""
    trees = search(method)
    assert trees == search(method, shuffle=3) == search(method, shuffle=4, max_trees=2)
    kinds = Counter(kind for tree in trees.values() for kind in tree.actions[1:])
    assert set(kinds) == {"step", "ask"} and 0.55 < kinds["step"] / sum(kinds.values()) < 0.78
    for problem in PROBLEMS[:8]:
        tree = trees[problem.id]
        assert tuple(tree.prompt_ids) == PLAIN.prompt_ids(problem) and tree.actions[0] == ""
        assert [tuple(map(ord, text)) for text in tree.texts] == list(map(tuple, tree.token_ids))
    tree = trees["p0"]
    assert to_networkx(tree).nodes[1]["action"] == tree.actions[1] and "action" not in to_networkx(tree).nodes[0]


class Loud:
    """A tool that repeats a step and everything before it."""

    def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
        """Answer calls."""
        return [Observation(f"{len(call.solution)}") for call in calls]

    def close(self) -> None:
        """Nothing is open."""


def test_a_tool_sees_the_plain_path_whatever_the_prompt_of_a_step_was() -> None:
    """Observations count the characters of the path alone, and a path has one observation under both actions."""
    trees = search("mcts", tool=Loud())
    assert any(tree.given_ids for tree in trees.values())
    for tree in trees.values():
        for node in range(1, len(tree.parents)):
            if tree.given_texts[node]:
                before, at = 0, tree.parents[node]
                while at:
                    before, at = before + len(tree.texts[at]) + len(tree.given_texts[at]), tree.parents[at]
                assert tree.given_texts[node] == f"[{before}]\n"
    assert {kind for tree in trees.values() for kind in tree.actions} == {"", "step", "ask"}
