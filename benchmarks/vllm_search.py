"""Speed of the search on vLLM, as ratios within one run: searching against sampling, tokens forwarded against tokens in the tree.

    python -m benchmarks.vllm_search                      both tasks on a CPU, 64 problems x 16 simulations
    python -m benchmarks.vllm_search --problems 256  the same with more problems

Two tasks: the embedded one (steps of about ten tokens) and a model with random weights whose steps have geometric lengths (mean near 60,
most between 6 and 180) behind prompts of 200 tokens. vLLM shares whole blocks, so short steps share little. Searching and sampling use the
same engine, problems, batch and limits; nothing is scored, so that the policy alone is measured. Its seconds are those of the processor, so
that other work on the machine does not count; use ``--clock wall`` on a GPU. Unique tokens are the prompts and all steps of the trees, each
once.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine import Bench
from stepladder.embedded.glyphs import GlyphTask
from stepladder.embedded.model import build_tokenizer
from stepladder.interfaces import StepRequest, StepResult
from stepladder.lm.loading import load_model_settings, load_tokenizer
from stepladder.lm.vllm import EngineSettings, VLLMEngine
from stepladder.mcts.methods import resolve_method
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import Budget, Problem, SearchResult

SETUPS = (("majority", 4), ("mcts", 1), ("mcts", 4), ("mcts", 8), ("beam", 4))
LONG_PROMPT_TOKENS = 200


class ClockedPolicy:
    """A policy whose seconds are counted."""

    def __init__(self, policy: VLLMPolicy, clock: Callable[[], float]) -> None:
        """Count with a clock."""
        self.policy, self._clock, self.seconds = policy, clock, 0.0

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Pass requests on."""
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
    clock: Callable[[], float] = staticmethod(time.process_time)

    def serve(self) -> None:
        """Start the engine; it compiles nothing, but its first requests are slower than the later ones, so some are thrown away."""
        self.engine = VLLMEngine(self.policy_dir, task="generate", settings=EngineSettings(max_batch=self.max_batch))
        self.search(resolve_method("majority"), Budget(num_simulations=2, max_depth=2, max_step_tokens=8), scored=False)

    def policy(self) -> ClockedPolicy:
        """Return a policy with an empty cache."""
        self.engine.reset()
        settings = load_model_settings(self.policy_dir)
        self.used = ClockedPolicy(VLLMPolicy(self.engine, self.tokenizer, self.step_format, *settings), self.clock)
        return self.used


class LongSteps(VLLMBench):
    """A model with random weights: nearly every token is about as likely as any other, so a newline comes after some 50 of them."""

    max_step_tokens = 256

    def __init__(self, folder: Path, *, num_problems: int, max_batch: int) -> None:
        """Build the model and its problems."""
        from transformers import LlamaConfig, LlamaForCausalLM

        task = GlyphTask(num_train=1)
        tokenizer = build_tokenizer(task)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=192,
            max_position_embeddings=4096,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
        self.policy_dir = folder / "long"
        LlamaForCausalLM(config).save_pretrained(self.policy_dir)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(self.policy_dir)
        self.tokenizer = load_tokenizer(self.policy_dir)
        self.step_format = StepFormat(answer_pattern=r"(never)")
        self.renderer = PromptRenderer(self.tokenizer, self.step_format)
        digits = "0123456789"
        self.problems = [Problem(id=str(i), question=(f"{i:05d}" + digits * 20)[:LONG_PROMPT_TOKENS]) for i in range(num_problems)]
        self.max_batch = max_batch


def unique_tokens(results: list[SearchResult]) -> int:
    """Tokens of the prompts and of all steps, each once."""
    return sum(len(result.tree.prompt_ids) + sum(map(len, result.tree.token_ids)) for result in results)


def measure(bench: VLLMBench, console: Console, *, simulations: int, title: str) -> None:
    """Print one table."""
    table = Table("method", "tokens", "tokens/s in policy", "of sampling", "cached share of prefixes", "forwarded / unique", title=title)
    sampling = None
    for name, wave in SETUPS:
        budget = Budget(num_simulations=simulations, max_depth=6, max_step_tokens=bench.max_step_tokens)
        begin = time.perf_counter()
        results, stats = bench.search(resolve_method(name, wave=wave), budget, scored=False)
        console.log(f"{name}, W={wave}: {time.perf_counter() - begin:.1f} s, {stats.engine_s / stats.total_s:.1%} of it bookkeeping")
        policy = bench.used.policy
        rate = policy.generated_tokens / bench.used.seconds
        sampling = sampling or rate
        table.add_row(
            "independent sampling" if name == "majority" else f"{name}, W={wave}",
            f"{policy.generated_tokens:,}",
            f"{rate:,.0f}",
            f"{rate / sampling:.2f}",
            f"{policy.cached_share or 0.0:.2f}",
            f"{policy.forwarded_tokens / unique_tokens(results):.2f}",
        )
    console.print(table)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=16)
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        common = {"num_problems": arguments.problems, "max_batch": arguments.max_batch}
        for bench, title in (
            (VLLMBench(Path(folder), **common, device="auto"), "embedded task"),
            (LongSteps(Path(folder), **common), "long steps of uneven length"),
        ):
            bench.clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
            bench.serve()
            measure(bench, console, simulations=arguments.simulations, title=title)
            bench.engine.close()


if __name__ == "__main__":
    main()
