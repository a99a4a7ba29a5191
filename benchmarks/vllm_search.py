"""Speed of the search on vLLM, as ratios within one run: searching against sampling, tokens forwarded against tokens in the tree.

    python -m benchmarks.vllm_search                 on a CPU, about five minutes
    python -m benchmarks.vllm_search --problems 256  the first two tables with more problems, for a GPU

Three tables. *Embedded task*: steps of about ten tokens. *Long steps of uneven length*: a model with random weights whose steps have
geometric lengths (mean near 60, most between 6 and 180) behind prompts of 200 tokens. *Tokens forwarded*: steps of exactly so many tokens,
by block size, beside the least that a cache of whole blocks allows, and the transformers backend on the same searches.

Searching and sampling use the same engine, problems, batch and limits; nothing is scored, so that the policy alone is measured. Seconds
are those of the processor, so that other work on the machine does not count; use ``--clock wall`` on a GPU. Unique tokens are the prompts
and all steps of the trees, each once.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table

from benchmarks.engine import SETUPS, Bench, LongSteps
from stepladder.errors import StepladderError
from stepladder.interfaces import StepRequest, StepResult
from stepladder.lm.loading import load_model_settings
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.loops.runs.token_use import TokenUse, unique_tokens
from stepladder.mcts.methods import resolve_method
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.types import Budget, SearchResult

STEP_LENGTHS = {8: (16, 17), 32: (16, 17), 128: (4, 9), 512: (2, 5)}
"""Tokens of a step, and the problems and simulations that it is measured with: the root, and then waves of four leaves."""
BLOCK_SIZES = (16, 32, 128)


class ClockedPolicy:
    """A policy whose seconds and requests are counted."""

    def __init__(self, policy: Any, clock: Callable[[], float]) -> None:
        """Count with a clock."""
        self.policy, self._clock, self.seconds = policy, clock, 0.0
        self.asked: list[tuple[int, int]] = []
        """Tokens of the prefix and number of samples of every request."""

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Pass requests on."""
        self.asked += [(len(request.prefix_ids), request.num_samples) for request in requests]
        begin = self._clock()
        self.policy.submit(requests)
        self.seconds += self._clock() - begin

    def collect(self) -> list[StepResult]:
        """Pass results on."""
        begin = self._clock()
        results = self.policy.collect()
        self.seconds += self._clock() - begin
        return results


class VLLMBench(Bench):
    """The embedded task on one vLLM engine, whose cache is emptied before every method."""

    max_step_tokens = 12
    clock: ClassVar[Any] = staticmethod(time.process_time)

    def serve(self, block_size: int | None = None) -> None:
        """Start the engine; it compiles nothing, but its first requests are slower than the later ones, so some are thrown away."""
        settings = EngineSettings(max_batch=self.max_batch, block_size=block_size)
        self.engine = VLLMEngine(self.policy_dir, task="generate", settings=settings)
        self.search(resolve_method("majority"), Budget(num_simulations=2, max_depth=2, max_step_tokens=8), scored=False)

    def policy(self) -> Any:
        """Return a policy with an empty cache."""
        self.engine.reset()
        settings = load_model_settings(self.policy_dir)
        self.used = ClockedPolicy(VLLMPolicy(self.engine, self.tokenizer, self.step_format, *settings), self.clock)
        return self.used


class LongVLLMSteps(LongSteps, VLLMBench):
    """Long steps on vLLM."""


class EvenSteps(LongVLLMSteps):
    """The same model, whose steps end only where they are cut and go on behind the cut: all steps have one length."""

    def __init__(self, folder: Path, *, max_batch: int) -> None:
        """Build the model; the text that would end a step does not occur."""
        super().__init__(
            folder,
            num_problems=max(problems for problems, _ in STEP_LENGTHS.values()),
            max_batch=max_batch,
            device="auto",
            step_end="\n" * 9,
        )
        self.all_problems = self.problems
        self.on_vllm = True

    def policy(self) -> Any:
        """Return a policy of the backend that is measured, with an empty cache."""
        self.used = super().policy() if self.on_vllm else ClockedPolicy(super(VLLMBench, self).policy(), self.clock)
        return self.used

    def forwarded(self, step_length: int) -> tuple[TokenUse, list[SearchResult]]:
        """Search with steps of one length and return what was forwarded."""
        num_problems, simulations = STEP_LENGTHS[step_length]
        self.problems = self.all_problems[:num_problems]
        budget = Budget(num_simulations=simulations, max_depth=6, max_step_tokens=step_length)
        results, _ = self.search(resolve_method("mcts", wave=4, cut_steps="continue"), budget, scored=False)
        num_unique = sum(unique_tokens(result.tree) for result in results)
        return TokenUse.of(self.used.policy, None, unique_tokens=num_unique), results

    def least(self, results: list[SearchResult], block_size: int) -> int:
        """Tokens that must be forwarded when only whole blocks of computed tokens are shared.

        A prefix's last token is always forwarded, for its logits; the whole blocks of a prompt are forwarded once, and those of steps were
        computed when they were sampled.
        """
        prompts = sum((len(result.tree.prompt_ids) - 1) // block_size * block_size for result in results)
        tails = sum((length - (length - 1) // block_size * block_size) * samples for length, samples in self.used.asked)
        counts = self.used.policy.token_counts
        return prompts + tails + counts.generated_tokens - sum(samples for _, samples in self.used.asked)


def measure(bench: VLLMBench, console: Console, *, simulations: int, title: str) -> None:
    """Print how fast methods are."""
    table = Table("method", "tokens", "tokens/s in policy", "of sampling", "cached share of prefixes", "forwarded / unique", title=title)
    sampling = None
    for name, wave in SETUPS:
        budget = Budget(num_simulations=simulations, max_depth=6, max_step_tokens=bench.max_step_tokens)
        begin = time.perf_counter()
        results, stats = bench.search(resolve_method(name, wave=wave), budget, scored=False)
        console.log(f"{name}, W={wave}: {time.perf_counter() - begin:.1f} s, {stats.engine_s / stats.total_s:.1%} of it bookkeeping")
        counts = bench.used.policy.token_counts
        use = TokenUse.of(bench.used.policy, None, unique_tokens=sum(unique_tokens(result.tree) for result in results))
        rate = counts.generated_tokens / bench.used.seconds
        sampling = sampling or rate
        table.add_row(
            "independent sampling" if name == "majority" else f"{name}, W={wave}",
            f"{counts.generated_tokens:,}",
            f"{rate:,.0f}",
            f"{rate / sampling:.2f}",
            f"{use.cached_share or 0.0:.2f}",
            f"{use.policy_ratio:.2f}",
        )
    console.print(table)


def measure_forwarding(bench: EvenSteps, console: Console) -> None:
    """Print how many tokens are forwarded, by step length and block size."""
    cells: dict[int, list[str]] = {length: [str(length)] for length in STEP_LENGTHS}
    names = []
    for block_size in BLOCK_SIZES:
        try:
            bench.serve(block_size)
        except StepladderError as error:
            console.print(f"blocks of {block_size}: {error}")
            continue
        names.append(f"vLLM, blocks of {block_size}")
        for length in STEP_LENGTHS:
            begin = time.process_time()
            use, results = bench.forwarded(length)
            console.log(f"blocks of {block_size}, steps of {length}: {time.process_time() - begin:.1f} s of the processor")
            assert use.forwarded_tokens is not None
            least = bench.least(results, block_size) / use.unique_tokens
            cells[length].append(f"{use.policy_ratio:.3f} (least {least:.3f})")
        bench.engine.close()
    bench.on_vllm = False
    for length in STEP_LENGTHS:
        use, _ = bench.forwarded(length)
        cells[length].append(f"{use.policy_ratio:.3f}")
    table = Table("tokens of a step", *names, "transformers", title="tokens forwarded / unique tokens, mcts, W=4")
    for row in cells.values():
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--simulations", type=int, default=8)
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--table", choices=("embedded", "long", "forwarded"), action="append", help="only this one; may be repeated")
    arguments = parser.parse_args()
    wanted = arguments.table or ("embedded", "long", "forwarded")
    console = Console(width=120)
    VLLMBench.clock = staticmethod(time.process_time if arguments.clock == "cpu" else time.perf_counter)
    common = {"num_problems": arguments.problems, "max_batch": arguments.max_batch}
    with tempfile.TemporaryDirectory() as folder:
        for name, make, title in (
            ("embedded", lambda: VLLMBench(Path(folder), **common, device="auto"), "embedded task"),
            ("long", lambda: LongVLLMSteps(Path(folder), **common, device="auto"), "long steps of uneven length"),
        ):
            if name in wanted:
                bench = make()
                bench.serve()
                measure(bench, console, simulations=arguments.simulations, title=title)
                bench.engine.close()
        if "forwarded" in wanted:
            measure_forwarding(EvenSteps(Path(folder), max_batch=arguments.max_batch), console)


if __name__ == "__main__":
    main()
