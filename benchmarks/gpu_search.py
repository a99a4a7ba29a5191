"""Tokens per second of searches on vLLM beside vLLM's own, in one run, for a GPU: no model is downloaded.

    python -m benchmarks.gpu_search --shape 0.5b --batch 512
    python -m benchmarks.gpu_search --shape 7b --batch 256 --methods mcts:4,majority:16
    python -m benchmarks.gpu_search --methods mcts:4:1,mcts:4:4       new sequences arrive every step, every four steps
    python -m benchmarks.gpu_search --processes 3 --cache-gb 8        and the first method in three processes at once, each with its engine
    python -m benchmarks.gpu_search --shape tiny --batch 128 --sequences 256 --clock cpu      on a CPU, where other work does not count

The model has the shape of a known one and random weights, so every token is about as likely as any other. One token in twenty ends a line,
and so a step: steps have geometric lengths with a mean of twenty tokens. Prompts have 110 tokens.

The baselines are what a user of vLLM gets from the same engine: plain requests through vLLM's own front end, as many in flight as the
engine takes, without seeds and log-probabilities. In the first, all are whole solutions of 120 tokens, so that they begin and end together:
the easiest case, in which the engine almost only decodes. In the second, their lengths are those of solutions of six steps, as in real use.
Searches have so many trees at once that the engine always has
requests waiting, as a run over many problems has, and enough problems to sample about as many tokens as the plain requests do. Nothing is
scored. Every figure is tokens sampled per second, ends of the run included.
"""

import argparse
import contextlib
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config

from stepladder.embedded.model import symbol_tokenizer
from stepladder.lm.loading import load_model_settings, load_tokenizer
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import Budget, Problem, Provenance

PROMPT_TOKENS, STEP_TOKENS, MAX_STEP_TOKENS, MAX_DEPTH = 110, 20, 80, 6
WHOLE_SOLUTION = STEP_TOKENS * MAX_DEPTH
CHILDREN, TREES = 4, 256
BASELINES = ("vLLM itself, equal lengths", "vLLM itself, staggered lengths")
FORMAT = StepFormat(prompt_template="{question}", step_end="\n", answer_pattern="(never)")
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="-", renderer_hash="-")


class Shape(NamedTuple):
    """The size of a Qwen2."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int = 151_936


SHAPES = {
    "tiny": Shape(64, 2, 2, 2, 192, 2048),
    "0.5b": Shape(896, 24, 14, 2, 4864),
    "1.5b": Shape(1536, 28, 12, 2, 8960),
    "7b": Shape(3584, 28, 28, 4, 18944, 152_064),
}
"""Shapes of Qwen2.5 and one to try the script with."""


def save_model(shape: Shape, folder: Path) -> None:
    """Save the configuration and tokenizer of a model, which vLLM gives random weights."""
    words = [f"w{i}\n" if i % STEP_TOKENS == 0 else f"w{i} " for i in range(shape.vocab_size - 3)]
    tokenizer = symbol_tokenizer(words, pattern=r"w[0-9]+[ \n]")
    tokenizer.model_max_length = 2048
    tokenizer.save_pretrained(folder)
    Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        tie_word_embeddings=shape is SHAPES["0.5b"],
    ).save_pretrained(folder)


Lengths = Callable[[int], int]
"""The tokens of the sequence of each number."""


class Searched(NamedTuple):
    """What is measured."""

    method: str
    """Name of a search method."""
    wave: int
    """Leaves in flight in a tree."""
    arrival_steps: int | None = None
    """Steps of the engine from one arrival of new sequences to the next; None is what the engine has."""

    @classmethod
    def of(cls, text: str) -> "Searched":
        """Read METHOD:WAVE or METHOD:WAVE:STEPS."""
        method, wave, *steps = text.split(":")
        return cls(method, int(wave), *(int(each) for each in steps))

    def __str__(self) -> str:
        """Say it in a table."""
        steps = "" if self.arrival_steps is None else f", arrivals every {self.arrival_steps} steps"
        return f"{self.method}, {self.wave} in flight{steps}"


class Bench:
    """An engine with problems."""

    clock: ClassVar[Any] = staticmethod(time.perf_counter)

    def __init__(self, folder: Path, *, batch: int, cache_gb: float | None, options: dict[str, Any]) -> None:
        """Start the engine."""
        begin = time.perf_counter()
        # With a cache of a given size, vLLM measures no free memory, and so several engines may start side by side.
        cache = {} if cache_gb is None else {"kv_cache_memory_bytes": int(cache_gb * 1e9)}
        settings = EngineSettings(
            max_batch=batch,
            max_context=2048,
            memory_share=0.1 if cache else 0.8,
            options={"load_format": "dummy", **cache, **options},
        )
        self.engine, self.batch = VLLMEngine(folder, task="generate", settings=settings), batch
        self.arrival_steps = self.engine.arrivals.steps
        self.start_s = time.perf_counter() - begin
        self.tokenizer, self.named = load_tokenizer(folder), load_model_settings(folder)
        self.renderer = PromptRenderer(self.tokenizer, FORMAT)
        rng = np.random.default_rng(0)
        # Numbers that are multiples of the length of a step end a line.
        drawn = rng.integers(1, len(self.tokenizer) // STEP_TOKENS - 1, (max(2048, batch), PROMPT_TOKENS)) * STEP_TOKENS + 1
        self.problems = [Problem(id=str(i), question="".join(f"w{n} " for n in row)) for i, row in enumerate(drawn.tolist())]

    def plain(self, *, total: int, lengths: Lengths, seeds: bool = False, **more: Any) -> tuple[int, float]:
        """Return tokens and seconds of plain requests through vLLM's front end; ``more`` are further sampling parameters."""
        llm: Any = self.engine._engine

        def start(number: int, prompt: list[int]) -> None:
            params = _sampling(max_tokens=lengths(number), seed=number if seeds else None, **more)
            llm.add_request(str(number), {"prompt_token_ids": prompt}, params)

        def step() -> list[tuple[int, bool]]:
            return [(len(output.outputs[0].token_ids), output.finished) for output in llm.step()]

        return self._flow(start, step, total=total)

    def handed_over(self, *, total: int, lengths: Lengths, seeds: bool = True) -> tuple[int, float]:
        """Return tokens and seconds of the same sequences, given to vLLM's core as a search does, with log-probabilities."""
        request = self.engine.prepare(_sampling(max_tokens=1, logprobs=0))

        def start(number: int, prompt: list[int]) -> None:
            self.engine.sample(prompt, request, seed=number if seeds else None, max_tokens=lengths(number))

        def step() -> list[tuple[int, bool]]:
            return [(len(new.token_ids), new.finish_reason is not None) for new in self.engine.sample_step()]

        return self._flow(start, step, total=total)

    def _flow(
        self, start: Callable[[int, list[int]], None], step: Callable[[], list[tuple[int, bool]]], *, total: int
    ) -> tuple[int, float]:
        """Return tokens and seconds of ``total`` sequences, as many at once as the engine takes.

        ``start`` queues a sequence; ``step`` returns the new tokens of each and whether it ended.
        """
        self.engine.reset()
        prompts = [list(self.renderer.prompt_ids(problem)) for problem in self.problems]
        begin, count, running, started = self.clock(), 0, 0, 0
        while started < total or running:
            while started < total and running < self.batch:
                start(started, prompts[started % len(prompts)])
                started, running = started + 1, running + 1
            for new_tokens, is_over in step():
                count += new_tokens
                running -= is_over
        return count, self.clock() - begin

    def search(self, searched: Searched, *, simulations: int, tokens: int) -> tuple[int, float, dict[str, float]]:
        """Return tokens and seconds of a search that samples about so many tokens, and what else is worth knowing."""
        self.engine.reset()
        self.engine.arrivals.steps = searched.arrival_steps or self.arrival_steps
        name = searched.method
        policy = VLLMPolicy(self.engine, self.tokenizer, FORMAT, *self.named)
        per_simulation = WHOLE_SOLUTION if name in ("majority", "best-of-n") else CHILDREN * STEP_TOKENS
        problems = self.problems[: max(tokens // (simulations * per_simulation), 1)]
        search = SearchEngine(
            policy=policy,
            renderer=self.renderer,
            method=resolve_method(name, wave=searched.wave),
            budget=Budget(num_simulations=simulations, max_depth=MAX_DEPTH, max_step_tokens=MAX_STEP_TOKENS),
            provenance=PROVENANCE,
            max_trees=TREES,
        )
        begin = self.clock()
        nodes = sum(len(result.tree.parents) for result in search.search(problems))
        seconds = self.clock() - begin
        more = {
            "problems": len(problems),
            "nodes": nodes,
            "bookkeeping": search.stats.engine_s / search.stats.total_s,
            "forwarded": policy.token_counts.forwarded_tokens or 0,
        }
        return policy.generated_tokens, seconds, more


def equal(number: int) -> int:
    """Return the length of a solution; all are equally long."""
    return WHOLE_SOLUTION


def staggered(number: int) -> int:
    """Return the length of a solution: its steps have geometric lengths, cut as in a search."""
    steps = np.random.default_rng(number).geometric(1 / STEP_TOKENS, MAX_DEPTH)
    return int(np.minimum(steps, MAX_STEP_TOKENS).sum())


def _sampling(**more: Any) -> Any:
    """Return the sampling parameters that all sequences share, and ``more``."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    return SamplingParams(temperature=1.0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA, **more)


def _wait_for(file: Path | None) -> None:
    """Return once the file exists."""
    while file is not None and not file.exists():
        time.sleep(0.2)


def profile(bench: Bench, searched: Searched, *, simulations: int, tokens: int) -> None:
    """Print where the time of this process goes during a search."""
    profiler = cProfile.Profile()
    profiler.runcall(bench.search, searched, simulations=simulations, tokens=tokens)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


class Others:
    """More processes with an engine each, which do one search when they are told to."""

    def __init__(self, count: int, folder: Path) -> None:
        """Start them with the options of this process; their files lie in the folder."""
        self._go, self._files = folder / "go", [folder / f"other-{number}.json" for number in range(count)]
        self._running = [
            subprocess.Popen([sys.executable, "-m", "benchmarks.gpu_search", *sys.argv[1:], "--other", str(file), "--after", str(self._go)])
            for file in self._files
        ]

    def wait(self) -> None:
        """Return once all engines run."""
        for process, file in zip(self._running, self._files, strict=True):
            while not file.with_suffix(".ready").exists():
                if process.poll() is not None:
                    sys.exit(f"another process ended with exit code {process.returncode} before its engine ran")
                time.sleep(0.2)

    def with_others(self, search: Callable[[], tuple[int, float, dict[str, float]]]) -> tuple[int, float]:
        """Return the tokens of all processes, and the seconds of the slowest, when all search at once."""
        self._go.touch()
        found = [search()[:2]]
        for process, file in zip(self._running, self._files, strict=True):
            if process.wait() != 0:
                sys.exit(f"another process ended with exit code {process.returncode}")
            found.append(tuple(json.loads(file.read_text())))
        return sum(tokens for tokens, _ in found), max(seconds for _, seconds in found)

    def end(self) -> None:
        """End those that still run."""
        for process in self._running:
            process.kill()
            process.wait()


def be_another(bench: Bench, searched: Searched, arguments: argparse.Namespace) -> None:
    """Say that the engine runs, wait, search, and leave tokens and seconds in a file."""
    file: Path = arguments.other
    bench.search(searched, simulations=2, tokens=1)
    file.with_suffix(".ready").touch()
    _wait_for(arguments.after)
    tokens = arguments.sequences * WHOLE_SOLUTION
    count, seconds, _ = bench.search(searched, simulations=arguments.simulations, tokens=tokens)
    file.write_text(json.dumps([count, seconds]))


def measure(bench: Bench, others: Others, arguments: argparse.Namespace, console: Console) -> None:
    """Measure one thing after the other and print a table; every line is also printed as JSON as soon as it is there."""
    columns = ("what", "tokens", "seconds", "tokens/s", "of equal", "of staggered", "more")
    table = Table(*columns, title=f"{arguments.shape}, {arguments.batch} at once")
    bench.plain(total=arguments.batch, lengths=equal)
    begin, rates = time.perf_counter(), dict[str, float]()

    def report(what: str, tokens: int, seconds: float, more: dict[str, float] | None = None) -> None:
        rates[what] = rate = tokens / seconds
        shares = {name: round(rate / rates[name], 3) for name in BASELINES if name in rates}
        said = ", ".join(f"{key} {value:,.3g}" for key, value in (more or {}).items())
        table.add_row(what, f"{tokens:,}", f"{seconds:.1f}", f"{rate:,.0f}", *(str(shares.get(name, "")) for name in BASELINES), said)
        line = {"what": what, "shape": arguments.shape, "batch": arguments.batch, "tokens": tokens, "seconds": round(seconds, 2)}
        print(json.dumps({**line, "rate": round(rate), "of": shares, **(more or {})}), flush=True)

    total, methods = arguments.sequences, arguments.methods
    size = {"simulations": arguments.simulations, "tokens": total * WHOLE_SOLUTION}
    for name, lengths in zip(BASELINES, (equal, staggered), strict=True):
        report(name, *bench.plain(total=total, lengths=lengths))
    report("with seeds and log-probabilities", *bench.plain(total=total, lengths=staggered, seeds=True, logprobs=0))
    report("given to its core by stepladder", *bench.handed_over(total=total, lengths=staggered))
    report("the same without seeds", *bench.handed_over(total=total, lengths=staggered, seeds=False))
    for searched in methods:
        if time.perf_counter() - begin > arguments.seconds:
            console.log(f"{searched} and what follows it is left out: the time is up")
            break
        bench.search(searched, simulations=2, tokens=1)  # compiles what the method needs
        report(str(searched), *bench.search(searched, **size))
    if arguments.processes > 1:
        report(f"{methods[0]}, {arguments.processes} processes", *others.with_others(lambda: bench.search(methods[0], **size)))
    if arguments.profile:
        profile(bench, methods[-1], **size)
    console.print(table)


def _parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--batch", type=int, default=512, help="sequences at once")
    parser.add_argument("--sequences", type=int, default=2048, help="plain requests; searches sample about as many tokens")
    parser.add_argument(
        "--methods",
        type=lambda text: [Searched.of(each) for each in text.split(",")],
        default="majority:16,mcts:1,mcts:4,mcts:8,beam:4",
        help="METHOD:WAVE or METHOD:WAVE:ARRIVAL_STEPS, by commas",
    )
    parser.add_argument("--processes", type=int, default=1, help="at the end, the first method in so many processes at once")
    parser.add_argument("--simulations", type=int, default=16)
    parser.add_argument("--cache-gb", type=float, help="size of the engine's cache; else what is free")
    parser.add_argument("--after", type=Path, metavar="FILE", help="start the engine, but measure only once this file exists")
    parser.add_argument("--options", default="{}", help="JSON of vLLM's engine arguments")
    parser.add_argument("--seconds", type=float, default=600.0, help="no method begins later than so many seconds after the first request")
    parser.add_argument("--profile", action="store_true", help="where the time of this process goes, with the last method")
    parser.add_argument("--other", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="wall")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark, or be one of several processes of it."""
    arguments, console = _parsed(), Console(width=120)
    if arguments.clock == "cpu":
        Bench.clock = staticmethod(time.process_time)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        others = Others(arguments.processes - 1 if arguments.other is None else 0, folder)
        stack.callback(others.end)
        save_model(SHAPES[arguments.shape], folder / "model")
        bench = Bench(folder / "model", batch=arguments.batch, cache_gb=arguments.cache_gb, options=json.loads(arguments.options))
        stack.callback(bench.engine.close)
        if arguments.other is not None:
            be_another(bench, arguments.methods[0], arguments)
            return
        console.log(f"engine started in {bench.start_s:.0f} s")
        others.wait()
        _wait_for(arguments.after)
        measure(bench, others, arguments, console)


if __name__ == "__main__":
    main()
