"""Steps that call a tool: what follows them, what the tool is asked, what is kept, and what goes wrong."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stepladder.errors import CheckpointError
from stepladder.interfaces import Observation, StepRequest, ToolCall, collect_all
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.policy.observations import ObservationStore, path_key
from stepladder.policy.tools import ToolPolicy, ToolSettings
from stepladder.testing import CharRenderer, ExactVerifier, ScriptedPolicy, TableScorer, make_step
from stepladder.types import Budget, Step, StopReason
from tests.searches import ANSWERS, PROBLEMS, PROVENANCE, propose, score

PROMPT = tuple(map(ord, "q\n"))


class Codec(CharRenderer):
    """A renderer of characters that can also write text."""

    def encode_text(self, text: str, *, place: str) -> tuple[int, ...]:
        """Return the code points of a text."""
        return self.encode(text)


class Counted:
    """A tool that says how long everything before a step with a ``b`` was, and fails for a step with ``bb``."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.closed = 0

    def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
        """Answer calls."""
        self.calls += calls
        return [self._one(call) for call in calls]

    def _one(self, call: ToolCall) -> Observation | None:
        if "b" not in call.step:
            return None
        return Observation(f"{len(call.solution)}", failed="bb" in call.step)

    def close(self) -> None:
        """Count the calls."""
        self.closed += 1


def wrap(policy: Any, tool: Any, *, store: ObservationStore | None = None, **settings: Any) -> ToolPolicy:
    return ToolPolicy(policy, tool, Codec(), ToolSettings(**{"form": "[{output}]\n", **settings}), store or ObservationStore())


def ask(policy: ToolPolicy, **options: Any) -> list[tuple[Step, ...]]:
    request = StepRequest(
        **{"ticket": 7, "prefix_ids": PROMPT, "num_samples": 1, "seed": 1, "given": ((0, 2),), "question": "q", **options}
    )
    (result,) = collect_all(policy, [request])
    assert result.ticket == 7
    return list(result.samples)


def scripted(*texts: str) -> ScriptedPolicy:
    """A policy that writes these lines one after the other, whatever was observed; the last one ends the solution."""

    def write(prefix_ids: tuple[int, ...], index: int, seed: int) -> Step:
        lines = [line for line in "".join(map(chr, prefix_ids)).split("\n")[1:-1] if not line.startswith("[")]
        last = len(lines) == len(texts) - 1
        return make_step(texts[len(lines)] + ("" if last else "\n"), stop_reason=StopReason.END if last else StopReason.STEP)

    return ScriptedPolicy(write)


def test_a_cap_on_tokens_counts_sampled_ones_alone_over_all_steps() -> None:
    """Five tokens are "a", "b" with their line ends and one more; observations do not count. Four end with the second step."""
    (steps,) = ask(wrap(scripted("a", "b", "ab", "=1"), Counted()), max_steps=9, max_tokens=5)
    assert [step.text for step in steps] == ["a\n", "b\n", "a"] and steps[1].given_text == "[2]\n"
    assert [step.stop_reason for step in steps] == [StopReason.STEP, StopReason.STEP, StopReason.LENGTH]
    (steps,) = ask(wrap(scripted("a", "b", "ab", "=1"), Counted()), max_steps=9, max_tokens=4)
    assert [(step.text, step.stop_reason) for step in steps] == [("a\n", StopReason.STEP), ("b\n", StopReason.LENGTH)]


def test_an_observation_follows_its_step_and_comes_before_the_next() -> None:
    """The tool sees question, solution and step; the policy goes on after what it returned, with its range among the given ones."""
    inner, tool = scripted("a", "b", "ab", "=1"), Counted()
    (steps,) = ask(wrap(inner, tool), max_steps=9)
    assert [(step.text, step.given_text) for step in steps] == [("a\n", ""), ("b\n", "[2]\n"), ("ab\n", "[8]\n"), ("=1", "")]
    assert [step.given_ids for step in steps] == [tuple(map(ord, step.given_text)) for step in steps]
    assert [request.max_steps for request in inner.requests] == [1] * 4
    assert "".join(map(chr, inner.requests[-1].prefix_ids)) == "q\na\nb\n[2]\nab\n[8]\n"
    assert inner.requests[-1].given == ((0, 2), (6, 10), (13, 17))
    assert tool.calls[-1] == ToolCall(question="q", turns=(("a\nb\n", "[2]\n"), ("", "")), step="ab\n")
    assert (tool.calls[-1].sampled, tool.calls[-1].solution) == ("a\nb\n", "a\nb\n[2]\n")


def test_a_prefix_with_observations_is_read_as_it_was_given() -> None:
    """A request from a stored tree continues it: ranges say what was sampled, and nothing is asked again for them."""
    tool = Counted()
    prefix = tuple(map(ord, "q\nb\n[0]\n"))
    ((step,),) = ask(wrap(scripted("b", "ab", "=1"), tool), prefix_ids=prefix, given=((0, 2), (4, 8)))
    assert (step.text, step.given_text) == ("ab\n", "[6]\n")
    assert tool.calls == [ToolCall(question="q", turns=(("b\n", "[0]\n"), ("", "")), step="ab\n")]


def test_errors_in_a_row_end_a_path() -> None:
    """Two errors in a row do; an answer of the tool between two errors begins the count again; a step without a call does not."""
    (steps,) = ask(wrap(scripted("bb", "b", "bb", "a", "bb", "=1"), Counted()), max_steps=9)
    assert [step.stop_reason for step in steps] == [StopReason.STEP] * 4 + [StopReason.TOOL]
    assert steps[-1].given_text == "[23]\n"
    (steps,) = ask(wrap(scripted("bb", "b", "bb", "=1"), Counted(), max_errors=1), max_steps=9)
    assert [step.stop_reason for step in steps] == [StopReason.TOOL]


def test_a_long_observation_is_cut() -> None:
    """At its number of tokens, text and ids alike."""
    ((step,),) = ask(wrap(scripted("b", "=1"), Counted(), max_tokens=2))
    assert (step.given_text, step.given_ids) == ("[0", tuple(map(ord, "[0")))


def test_an_observation_that_is_no_valid_text_is_mended(tmp_path: Path) -> None:
    """Halves of surrogate pairs, which no tokenizer reads, become question marks; the path goes on, also with a file."""

    class Odd(Counted):
        def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
            return [Observation("x\ud800\udcffé\0") for _ in calls]

    store = ObservationStore(tmp_path / "observations")
    (steps,) = ask(wrap(scripted("b", "=1"), Odd(), store=store), max_steps=9)
    assert [(step.text, step.given_text) for step in steps] == [("b\n", "[x??é\0]\n"), ("=1", "")]


def test_equal_paths_call_once_and_a_store_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Many samples of one step are one call. A new process finds the observation; a torn line is dropped, another is refused."""
    path, tool = tmp_path / "shard.observations.jsonl", Counted()
    samples = ask(wrap(scripted("b", "=1"), tool, store=ObservationStore(path)), num_samples=5, max_steps=2)
    assert len(tool.calls) == 1 and {sample[0].given_text for sample in samples} == {"[0]\n"}
    whole = path.read_bytes()
    path.write_bytes(whole + b'["torn')
    again = Counted()
    assert ask(wrap(scripted("b", "=1"), again, store=ObservationStore(path)), num_samples=5, max_steps=2) == samples
    assert again.calls == [] and path.read_bytes() == whole
    store = ObservationStore(path)
    assert store[path_key((*PROMPT, ord("b"), 10))] == Observation("0")
    store.remove()
    assert not path.exists()
    for foreign in ("{", "5", "null", '[[1], "0", false]', "[" * 100_000):
        path.write_text(f"{foreign}\n")
        with pytest.raises(CheckpointError, match=f"{path}:1: must be an observation"):
            ObservationStore(path)


def test_the_tool_runs_beside_the_policy_and_a_path_that_runs_is_not_asked_again() -> None:
    """While one call waits, other requests go on; a second sample of the same path waits for the same call."""
    go = threading.Event()

    class Slow(Counted):
        def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
            assert go.wait(30)
            return super().observe(calls)

    tool = Slow()
    policy = wrap(scripted("b", "=1"), tool)
    request = StepRequest(ticket=1, prefix_ids=PROMPT, num_samples=1, seed=1, given=((0, 2),))
    policy.submit([request])
    policy._take_steps()
    ended = StepRequest(ticket=2, prefix_ids=tuple(map(ord, "q\nb\n")), num_samples=1, seed=2, given=((0, 2),))
    policy.submit([ended, StepRequest(ticket=3, prefix_ids=PROMPT, num_samples=2, seed=3, given=((0, 2),))])
    assert [result.ticket for result in policy.collect()] == [2]
    go.set()
    assert sorted(result.ticket for result in policy.collect() + policy.collect()) == [1, 3]
    assert len(tool.calls) == 1
    policy.end()
    assert tool.closed == 1


@pytest.mark.parametrize("method", ["mcts", "best-of-n", "rest-mcts"])
def test_searches_do_not_depend_on_arrival_order_or_company(method: str) -> None:
    """Whole trees are equal whatever arrives first and however many problems run beside; only steps with a ``b`` are followed."""

    def run(shuffle: int | None, max_trees: int) -> dict[str, Any]:
        policy = wrap(ScriptedPolicy(propose, shuffle_seed=shuffle), Counted())
        engine = SearchEngine(
            policy=policy,
            scorer=TableScorer(score, shuffle_seed=shuffle),
            renderer=Codec(),
            method=resolve_method(method),
            budget=Budget(num_simulations=10, max_depth=5),
            provenance=PROVENANCE,
            verifier=ExactVerifier(ANSWERS),
            max_trees=max_trees,
        )
        found = {result.problem_id: result.tree for result in engine.search(PROBLEMS[:6])}
        policy.end()
        return found

    trees = run(None, 256)
    assert trees == run(3, 256) == run(4, 2)
    for tree in trees.values():
        for text, given, reason in zip(tree.texts, tree.given_texts or [""] * len(tree.texts), tree.stop_reasons, strict=True):
            assert bool(given) == ("b" in text and reason in ("step", "depth", "tool"))
    assert any(tree.given_ids for tree in trees.values())
