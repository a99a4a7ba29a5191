"""Speed of preference training on trees, against TRL's DPOTrainer and against separate sequences, on the same pairs.

    python benchmarks/packing.py                        embedded model, depth 8, branching 4
    python benchmarks/packing.py --plot packing.svg     and a sweep over depth and branching, as a plot

A tree is a line of steps expanded at every depth: at each, one chosen step and branching - 1 rejected siblings, so depth x (branching - 1)
pairs. All three trainers make one epoch over the same pairs in updates of the same number of pairs, reference log-probabilities included.
Each runs in a process of its own on one thread; times are CPU seconds of the training call, peak memory is what it adds to the process.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stepladder.embedded.glyphs import GlyphTask
from stepladder.embedded.model import build_tokenizer, write_base_model
from stepladder.types import PreferencePair, Provenance

PROMPT_TOKENS, STEP_TOKENS = 24, 9
"""About those of the embedded task."""
BATCH_SIZE = 64
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="benchmark", renderer_hash="benchmark")
TRAINERS = ("trees", "paths", "TRL")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is trained on."""

    num_trees: int
    """Problems."""
    depth: int
    """Steps of the line that is expanded."""
    branching: int
    """Children of every node on it."""

    @property
    def num_pairs(self) -> int:
        """Pairs of all trees."""
        return self.num_trees * self.depth * (self.branching - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a training took."""

    seconds: float
    """CPU seconds."""
    tokens: int
    """Tokens forwarded in the epoch, padding and the reference pass not counted."""
    peak_mb: float
    """Growth of the process's peak memory, in MB."""


def make_pairs(case: Case) -> list[PreferencePair]:
    """Return the pairs of random trees over single-symbol tokens, so that their text and their tokens say the same."""
    tokenizer = build_tokenizer(GlyphTask())
    symbols = tokenizer.convert_tokens_to_ids([*"0123456789"])
    line_break = tokenizer.convert_tokens_to_ids("\n")
    rng = np.random.default_rng(0)
    pairs = []
    for tree in range(case.num_trees):
        prefix = [*rng.choice(symbols, PROMPT_TOKENS - 1).tolist(), line_break]
        for depth in range(1, case.depth + 1):
            steps = [[*rng.choice(symbols, STEP_TOKENS - 1).tolist(), line_break] for _ in range(case.branching)]
            for rejected in steps[1:]:
                text = [tokenizer.decode(ids) for ids in (prefix, steps[0], rejected)]
                pairs.append(_pair(tree, prefix, steps[0], rejected, text, depth))
            prefix = prefix + steps[0]
    return pairs


def _pair(tree: int, prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int], text: list[str], depth: int) -> PreferencePair:
    return PreferencePair(
        problem_id=str(tree),
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        prompt=text[0],
        chosen=text[1],
        rejected=text[2],
        chosen_value=1.0,
        rejected_value=0.0,
        depth=depth,
        provenance=PROVENANCE,
    )


def num_unique_tokens(pairs: list[PreferencePair]) -> int:
    """Return the distinct prefixes of all sequences that predict something: what any exact training must forward."""
    found: set[tuple[Any, ...]] = set()
    for pair in pairs:
        for step in (pair.chosen_ids, pair.rejected_ids):
            ids = [*pair.prompt_ids, *step]
            found.update((pair.problem_id, *ids[:end]) for end in range(1, len(ids)))
    return len(found)


def train_ours(model_dir: Path, pairs: list[PreferencePair], out: Path, *, packed: bool) -> tuple[float, int]:
    """Train one epoch with stepladder; return CPU seconds and tokens."""
    from stepladder.lm.training import TrainSettings
    from stepladder.policy.train import train_preference

    settings = TrainSettings(learning_rate=1e-4, epochs=1.0, batch_size=BATCH_SIZE, packed=packed, device="cpu")
    start = time.process_time()
    report = train_preference(model_dir, pairs, out, settings, renderer_hash="benchmark")
    return time.process_time() - start, report.tokens


def train_trl(model_dir: Path, pairs: list[PreferencePair], out: Path) -> tuple[float, int]:
    """Train one epoch with TRL; return CPU seconds, tokenising left out, and tokens."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    from stepladder.lm.loading import load_causal_lm, load_tokenizer

    rows = Dataset.from_list([{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs])
    settings = DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1,
        learning_rate=1e-4,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    model, tokenizer = load_causal_lm(model_dir, device="cpu"), load_tokenizer(model_dir)
    trainer = DPOTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    tokens = 2 * sum(len(pair.prompt_ids) for pair in pairs) + sum(len(pair.chosen_ids) + len(pair.rejected_ids) + 2 for pair in pairs)
    start = time.process_time()
    trainer.train()
    return time.process_time() - start, tokens


def _measure(trainer: str, case: Case, folder: Path) -> Run:
    """Train in this process; a first, small training pays for imports and one-time set-up."""
    import torch

    torch.set_num_threads(1)
    model_dir = folder / "model"
    if not model_dir.exists():
        write_base_model(model_dir, GlyphTask(), seed=0)

    def train(pairs: list[PreferencePair]) -> tuple[float, int]:
        return (
            train_trl(model_dir, pairs, folder / "out")
            if trainer == "TRL"
            else train_ours(model_dir, pairs, folder / "out", packed=trainer == "trees")
        )

    train(make_pairs(Case(num_trees=1, depth=1, branching=3)))
    pairs = make_pairs(case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, tokens = train(pairs)
    return Run(seconds=seconds, tokens=tokens, peak_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def measure(trainer: str, case: Case) -> Run:
    """Train in a fresh process."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (trainer, case, Path(folder)))


def compare(case: Case, console: Console) -> None:
    """Print the three trainers side by side."""
    unique = num_unique_tokens(make_pairs(case))
    runs = {trainer: measure(trainer, case) for trainer in TRAINERS}
    table = Table(title=f"depth {case.depth}, branching {case.branching}: {case.num_pairs} pairs of {case.num_trees} trees, one epoch")
    for column in ("trainer", "CPU seconds", "tokens forwarded", "of unique", "faster than TRL", "peak memory added"):
        table.add_column(column)
    for name, run in runs.items():
        ratio = runs["TRL"].seconds / run.seconds
        table.add_row(name, f"{run.seconds:.2f}", f"{run.tokens:,}", f"{run.tokens / unique:.2f}", f"{ratio:.2f}", f"{run.peak_mb:.0f} MB")
    console.print(table)


def sweep(path: Path, num_pairs: int, console: Console) -> None:
    """Plot how many times faster than TRL an epoch is, over depth and branching, at about the same number of pairs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    depths = (1, 2, 4, 8, 16)
    for branching in (2, 4, 8):
        ratios = []
        for depth in depths:
            case = Case(num_trees=max(1, round(num_pairs / depth / (branching - 1))), depth=depth, branching=branching)
            ratios.append(measure("TRL", case).seconds / measure("trees", case).seconds)
            console.print(f"depth {depth}, branching {branching}: {ratios[-1]:.2f} times faster than TRL")
        axes.plot(depths, ratios, marker="o", label=f"branching {branching}")
    axes.set(
        xscale="log",
        xticks=depths,
        xticklabels=[str(depth) for depth in depths],
        xlabel="depth of the tree",
        ylabel="times faster than TRL",
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=16, help="problems")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--branching", type=int, default=4)
    parser.add_argument("--plot", type=Path, help="sweep over depth and branching and write this figure")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console()
    case = Case(num_trees=arguments.trees, depth=arguments.depth, branching=arguments.branching)
    compare(case, console)
    if arguments.plot:
        sweep(arguments.plot, case.num_pairs, console)


if __name__ == "__main__":
    main()
