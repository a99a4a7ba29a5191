"""What two ideas for searches on vLLM could be worth: samples of a prefix as one request, and steps that go on while they are scored.

    python -m benchmarks.vllm_ideas                  on a CPU, where processor seconds are measured, so that other work does not count
    python -m benchmarks.vllm_ideas --table going-on --methods mcts:4:4      new sequences arrive every four steps, as on a GPU

Model, prompts and steps are those of ``benchmarks.gpu_search --shape tiny``.

*Requests*: four samples of every prefix, with seeds and log-probabilities, as many sequences at once as the engine takes. The samples of a
prefix have equal lengths, and other prefixes others. All ways take turns, in a new order each time; ratios are of one turn.

*Going on*: while a search waits for the scores of finished steps, or for the slowest step of a wave, some of these steps could go on. What
that gains has two bounds. The engine must have room: the table counts the sequences of every step that it makes. And the continuation must
be kept, which it is if the search later expands just this child: the table counts such children in the finished trees. Steps are scored by
numbers drawn from their tokens, at no cost, so nothing but the search itself decides how many sequences it has.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_search import FORMAT, MAX_DEPTH, MAX_STEP_TOKENS, PROVENANCE, SHAPES, Bench, Searched, save_model, staggered
from stepladder.lm.vllm_engine import NewTokens
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.testing import TableScorer
from stepladder.types import Budget, Problem, StopReason, TreeRecord

SAMPLES = 4
"""Samples of a prefix."""
METHODS = "mcts:4,mcts:8,beam:4,best-of-n:16"
"""Search methods and their waves."""
TREES = (8, 16, 64, 256)
"""Problems searched at once."""
_MORE_PROBLEMS = 64
"""Problems beyond those that begin together, at most."""


class Took(NamedTuple):
    """What a way of asking for samples took."""

    per_token: float
    """Processor seconds of a sampled token."""
    taking_up: float
    """Share of these seconds in which sequences were handed to the engine's core."""


class Requests:
    """The same sequences, asked for in three ways."""

    def __init__(self, bench: Bench, *, total: int) -> None:
        """Measure with an engine.

        Args:
            bench: Holds the engine.
            total: Sequences, a multiple of ``SAMPLES``.
        """
        self._bench, self._total = bench, total
        self._prompts = [list(bench.renderer.prompt_ids(problem)) for problem in bench.problems]

    def apart(self, **more: Any) -> Took:
        """Ask vLLM's front end for every sample."""
        return self._front_end(1, **more)

    def together(self, **more: Any) -> Took:
        """Ask vLLM's front end for all samples of a prefix at once."""
        return self._front_end(SAMPLES, **more)

    def to_core(self, **more: Any) -> Took:
        """Give every sample to vLLM's core, as a search does."""
        engine = self._bench.engine
        request = engine.prepare(_sampling(max_tokens=1, logprobs=0))
        given, hand_over = 0.0, engine._engine.engine_core.add_request

        def timed(own: Any) -> None:
            nonlocal given
            begin = time.process_time()
            hand_over(own)
            given += time.process_time() - begin

        def start(group: int) -> None:
            nonlocal given
            begin = time.process_time()
            for sample in range(SAMPLES):
                engine.sample(self._prompt(group), request, seed=group * SAMPLES + sample, max_tokens=staggered(group))
            given += time.process_time() - begin

        def step() -> list[tuple[int, bool]]:
            return [(len(new.token_ids), new.finish_reason is not None) for new in engine.sample_step()]

        engine._engine.engine_core.add_request = timed
        try:
            tokens, seconds = self._flow(start, step)
        finally:
            engine._engine.engine_core.add_request = hand_over
        return Took(seconds / tokens, given / seconds)

    def _front_end(self, at_once: int, **more: Any) -> Took:
        llm: Any = self._bench.engine._engine
        given = 0.0

        def start(group: int) -> None:
            nonlocal given
            begin = time.process_time()
            for sample in range(0, SAMPLES, at_once):
                number = group * SAMPLES + sample
                params = _sampling(max_tokens=staggered(group), seed=number, n=at_once, **more)
                llm.add_request(str(number), {"prompt_token_ids": self._prompt(group)}, params)
            given += time.process_time() - begin

        def step() -> list[tuple[int, bool]]:
            return [(len(one.token_ids), one.finish_reason is not None) for output in llm.step() for one in output.outputs]

        tokens, seconds = self._flow(start, step)
        return Took(seconds / tokens, given / seconds)

    def _prompt(self, group: int) -> list[int]:
        return self._prompts[group % len(self._prompts)]

    def _flow(self, start: Callable[[int], None], step: Callable[[], list[tuple[int, bool]]]) -> tuple[int, float]:
        """Return tokens and processor seconds of all sequences, as many at once as the engine takes."""
        self._bench.engine.reset()
        begin, count, running, started = time.process_time(), 0, 0, 0
        while started < self._total or running:
            while started < self._total and running + SAMPLES <= self._bench.batch:
                start(started // SAMPLES)
                started, running = started + SAMPLES, running + SAMPLES
            for new_tokens, is_over in step():
                count += new_tokens
                running -= is_over
        return count, time.process_time() - begin


def _sampling(**more: Any) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    return SamplingParams(temperature=1.0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA, **more)


def measure_requests(bench: Bench, *, total: int, turns: int) -> Table:
    """Measure all ways of asking in every turn, and return a table of medians, least and most."""
    requests = Requests(bench, total=total)
    ways: dict[str, Callable[[], Took]] = {
        "four requests, front end": lambda: requests.apart(logprobs=0),
        "one request for four, front end": lambda: requests.together(logprobs=0),
        "four sequences, core": requests.to_core,
    }
    first = next(iter(ways))
    took: dict[str, list[Took]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way in random.Random(turn).sample(list(ways), len(ways)):
            found = ways[way]()
            # The first turn compiles and fills caches.
            if turn:
                took[way].append(found)
    table = Table(
        "what", "CPU ms/token", "of the first, by turns", "handing over, share", title=f"{SAMPLES} samples of a prefix, {turns} turns"
    )
    for way, all_took in took.items():
        ratios = [one.per_token / base.per_token for one, base in zip(all_took, took[first], strict=True)]
        milliseconds = [1e3 * one.per_token for one in all_took]
        table.add_row(way, _spread(milliseconds), _spread(ratios), _spread([one.taking_up for one in all_took]))
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


class Filling:
    """Counts the sequences of every step that an engine makes while the block runs."""

    def __init__(self, engine: Any) -> None:
        """Count those of an engine."""
        self._engine, self._step = engine, engine.sample_step
        self.counts: list[int] = []
        """Sequences of each step."""

    def __enter__(self) -> "Filling":
        """Begin to count."""

        def counted() -> list[NewTokens]:
            found = self._step()
            self.counts.append(len(found))
            return found

        self._engine.sample_step = counted
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._engine.sample_step = self._step


def kept_share(trees: Sequence[TreeRecord], *, max_depth: int) -> float:
    """Return the share of steps that a search continued among those that it could have.

    A continuation that began behind a step before the search chose is kept exactly if the step's node has children in the end.
    """
    continued = possible = 0
    for tree in trees:
        parents = set(tree.parents)
        for node, (depth, reason) in enumerate(zip(tree.depths, tree.stop_reasons, strict=True)):
            if node and depth < max_depth and reason == StopReason.STEP:
                possible += 1
                continued += node in parents
    return continued / possible


class Watched(NamedTuple):
    """A search and the steps of its engine."""

    trees: list[TreeRecord]
    """The trees."""
    counts: list[int]
    """Sequences of each step."""
    steady: int
    """Steps before the last problem began."""


def search(bench: Bench, searched: Searched, *, at_once: int, simulations: int) -> Watched:
    """Search somewhat more problems than are in flight at once."""
    bench.engine.reset()
    bench.engine.arrivals.steps = searched.arrival_steps or bench.arrival_steps
    begun = 0
    with Filling(bench.engine) as filling:

        def arriving() -> Iterator[Problem]:
            nonlocal begun
            for problem in bench.problems[: at_once + min(at_once, _MORE_PROBLEMS)]:
                begun = len(filling.counts)
                yield problem

        engine = SearchEngine(
            policy=VLLMPolicy(bench.engine, bench.tokenizer, FORMAT, *bench.named),
            scorer=TableScorer(lambda ids: random.Random(hash(ids)).random()),
            renderer=bench.renderer,
            method=resolve_method(searched.method, wave=searched.wave),
            budget=Budget(num_simulations=simulations, max_depth=MAX_DEPTH, max_step_tokens=MAX_STEP_TOKENS),
            provenance=PROVENANCE,
            max_trees=at_once,
        )
        trees = [result.tree for result in engine.search(arriving())]
    return Watched(trees, filling.counts, begun)


def measure_going_on(bench: Bench, methods: Sequence[Searched], *, trees: Sequence[int], simulations: int) -> Table:
    """Search with every method and number of problems at once, and return a table of both bounds; each line is also printed as JSON.

    With the engine filled to a share f over the whole run, and a share k of continuations kept, k * (1 / f - 1) more tokens than now are of
    use at most, if a step of the engine takes no longer for them. Whole solutions wait for nothing, so there is nothing to gain.
    """
    columns = ("method", "at once", "problems", "engine steps", "filled", "until the last begins", "kept", "gain at most")
    table = Table(*columns, title=f"{bench.batch} sequences at most, {simulations} simulations")
    for searched in methods:
        is_whole = resolve_method(searched.method).samples_solutions
        for at_once in trees:
            found = search(bench, searched, at_once=at_once, simulations=simulations)
            whole, steady = (float(np.mean(counts)) / bench.batch for counts in (found.counts, found.counts[: found.steady]))
            kept = kept_share(found.trees, max_depth=MAX_DEPTH)
            gain = 0.0 if is_whole else kept * (1 / whole - 1)
            sizes = {"method": str(searched), "at once": at_once, "problems": len(found.trees), "engine steps": len(found.counts)}
            shares = {"filled": whole, "until the last begins": steady, "kept": kept, "gain at most": gain}
            print(json.dumps({**sizes, **shares}), flush=True)
            table.add_row(*map(str, sizes.values()), *(f"{share:.3f}" for share in shares.values()))
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("requests", "going-on"), help="this one alone")
    parser.add_argument("--batch", type=int, default=128, help="sequences at once")
    parser.add_argument("--sequences", type=int, default=384, help="of every way of asking in a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--simulations", type=int, default=16)
    parser.add_argument(
        "--methods",
        type=lambda text: [Searched.of(each) for each in text.split(",")],
        default=METHODS,
        help="METHOD:WAVE or METHOD:WAVE:ARRIVAL_STEPS, by commas",
    )
    parser.add_argument(
        "--trees", type=lambda text: [int(each) for each in text.split(",")], default=TREES, help="problems at once, by commas"
    )
    arguments, console = parser.parse_args(), Console(width=140)
    with tempfile.TemporaryDirectory() as name:
        save_model(SHAPES["tiny"], Path(name) / "model")
        bench = Bench(Path(name) / "model", batch=arguments.batch, cache_gb=None, options={})
        try:
            if arguments.table != "going-on":
                console.print(measure_requests(bench, total=arguments.sequences, turns=arguments.turns))
            if arguments.table != "requests":
                console.print(measure_going_on(bench, arguments.methods, trees=arguments.trees, simulations=arguments.simulations))
        finally:
            bench.engine.close()


if __name__ == "__main__":
    main()
