"""Speed of training on trees, against TRL's DPOTrainer and against separate sequences, on the same rows.

    python -m benchmarks.packing                        embedded model, depth 8, branching 4
    python -m benchmarks.packing --plot packing.svg     and a sweep over depth and branching, as a plot (.svg or .png)
    python -m benchmarks.packing --row-sizes            and the time of an epoch by the largest tree allowed (row_tokens)
    python -m benchmarks.packing --gpu                  on a GPU, in three minutes: see gpu_training.py

A tree is a line of steps expanded at every depth: at each, one chosen step and branching - 1 rejected siblings, so depth x (branching - 1)
pairs. Preferences: all make one epoch over the same pairs in updates of the same number of pairs, reference log-probabilities included;
ours include loading and saving the model as well, TRL's do not. PRM: one epoch over the values of all nodes, as trees or one row per
prefix.

Each contestant has a process of its own on one thread; they run in turn, and the fastest of several turns counts. Times are CPU seconds,
on a GPU wall seconds; peak memory is what the training adds to the process, on a GPU what it allocates.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stepladder.embedded.glyphs import GlyphTask
from stepladder.embedded.model import build_tokenizer, write_base_model
from stepladder.types import PreferencePair, Provenance, ValueRow

PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="benchmark", renderer_hash="benchmark")
PREFERENCES = ("trees", "paths", "TRL")
PRM = ("PRM, trees", "PRM, one row per prefix")
ROW_SIZES = (64, 128, 256, 512, 1024, 2048)
QWEN_HALF_BILLION = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""Shape of Qwen2.5-0.5B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is trained, and how."""

    prompt_tokens: int = 24
    """Tokens of a question; about those of the embedded task."""
    step_tokens: int = 9
    """Tokens of a step."""
    batch_size: int = 64
    """Pairs, or values, per update."""
    rows_per_pass: int = 64
    """The same per forward pass of the trainers that do not pack."""
    row_tokens: int = 1024
    """Largest tree."""
    device: str = "cpu"
    """Where to train."""
    bf16: bool = False
    """Whether to compute in bfloat16."""
    model: dict[str, Any] | None = None
    """Fields of a Qwen2 configuration; None is the embedded task's model."""


GPU = Setup(
    prompt_tokens=128, step_tokens=32, batch_size=96, rows_per_pass=8, row_tokens=2048, device="cuda", bf16=True, model=QWEN_HALF_BILLION
)
"""A model and sequences for which a GPU is worth having; what the trainers without packing forward at once fits into 80 GB."""


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
    """CPU seconds, on a GPU wall seconds."""
    tokens: int
    """Tokens forwarded in the epoch, padding and the reference pass not counted."""
    peak_mb: float
    """Memory that it added, in MB."""


def make_pairs(case: Case, setup: Setup) -> list[PreferencePair]:
    """Return the pairs of random trees over single-symbol tokens, so that their text and their tokens say the same."""
    tokenizer, pairs = build_tokenizer(GlyphTask()), []
    for tree, prefix, steps, depth in _expansions(case, setup):
        for rejected in steps[1:]:
            text = [str(tokenizer.decode(ids)) for ids in (prefix, steps[0], rejected)]
            pairs.append(_pair(tree, prefix, steps[0], rejected, text, depth))
    return pairs


def make_values(case: Case, setup: Setup) -> list[ValueRow]:
    """Return a row for every node of the same trees: the way to it, with a value of its own."""
    rows = []
    for tree, prefix, steps, depth in _expansions(case, setup):
        for number, step in enumerate(steps):
            common = {"problem_id": str(tree), "prompt": "", "provenance": PROVENANCE}
            rows.append(ValueRow(**common, prompt_ids=prefix, steps=[""], step_ids=[step], targets=[(depth + number) % 5 / 4]))
    return rows


def _expansions(case: Case, setup: Setup) -> list[tuple[int, list[int], list[list[int]], int]]:
    """Return tree, prefix, steps and depth of every expansion; the first step is the one that is expanded next."""
    tokenizer = build_tokenizer(GlyphTask())
    symbols, line_break = tokenizer.convert_tokens_to_ids([*"0123456789"]), tokenizer.convert_tokens_to_ids("\n")
    rng, found = np.random.default_rng(0), []
    for tree in range(case.num_trees):
        prefix = [*rng.choice(symbols, setup.prompt_tokens - 1).tolist(), line_break]
        for depth in range(1, case.depth + 1):
            steps = [[*rng.choice(symbols, setup.step_tokens - 1).tolist(), line_break] for _ in range(case.branching)]
            found.append((tree, prefix, steps, depth))
            prefix = prefix + steps[0]
    return found


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


def num_unique_tokens(case: Case, setup: Setup, *, trainer: str) -> int:
    """Return the distinct prefixes of all sequences that predict something: what any exact training must forward."""
    found: set[tuple[Any, ...]] = set()
    for tree, prefix, steps, _ in _expansions(case, setup):
        for step in steps:
            # The last token of a completion predicts nothing; a value is read at it.
            ids = [*prefix, *step][: None if trainer in PRM else -1]
            found.update((tree, *ids[:end]) for end in range(1, len(ids) + 1))
    return len(found)


def _clock(setup: Setup) -> float:
    if setup.device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def train_ours(trainer: str, case: Case, setup: Setup, model_dir: Path, out: Path) -> tuple[float, int]:
    """Train one epoch with stepladder; return seconds and tokens."""
    from stepladder.lm.settings import TrainSettings
    from stepladder.policy.fine_tuning import train_preference
    from stepladder.prm.value_training import train_value

    packed, settings = trainer in ("trees", PRM[0]), {"learning_rate": 1e-4, "epochs": 1.0, "device": setup.device, "bf16": setup.bf16}
    if trainer in PRM:
        rows, train = make_values(case, setup), train_value
    else:
        rows, train = make_pairs(case, setup), train_preference
    size, micro = setup.batch_size, None if packed else min(setup.batch_size, setup.rows_per_pass)
    start = _clock(setup)
    report = train(
        model_dir,
        rows,  # pyright: ignore[reportArgumentType]
        out,
        TrainSettings(**settings, batch_size=size, micro_batch_size=micro, packed=packed, row_tokens=setup.row_tokens),
        renderer_hash="benchmark",
    )
    return _clock(setup) - start, report.tokens


def trl_trainer(rows: list[dict[str, Any]], model_dir: Path | str, out: Path, *, device: str = "cpu", **settings: Any) -> Any:
    """Return TRL's DPOTrainer with its model loaded; nothing is logged, saved or shown.

    Args:
        rows: Pairs as text (prompt, chosen, rejected), or as token ids (prompt_ids, chosen_ids, rejected_ids), which are taken as they are.
        model_dir: The model to train.
        out: Its output directory.
        device: Where to train.
        settings: Fields of its ``DPOConfig``.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    from stepladder.lm.loading import load_causal_lm, load_tokenizer, quiet

    class OnTokenIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    disable_progress_bars()
    config = DPOConfig(
        output_dir=str(out),
        gradient_checkpointing=False,
        max_length=None,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    with quiet():
        model, tokenizer = load_causal_lm(model_dir, device=device, dtype="float32"), load_tokenizer(model_dir)
    kind = OnTokenIds if "prompt_ids" in rows[0] else DPOTrainer
    trainer = kind(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def text_rows(pairs: list[PreferencePair]) -> list[dict[str, Any]]:
    """Return the text of pairs, as TRL reads it."""
    return [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]


def train_trl(case: Case, setup: Setup, model_dir: Path, out: Path) -> tuple[float, int]:
    """Train one epoch with TRL; return seconds, tokenising and loading left out, and tokens."""
    pairs = make_pairs(case, setup)
    trainer = trl_trainer(
        text_rows(pairs),
        model_dir,
        out,
        device=setup.device,
        per_device_train_batch_size=min(setup.rows_per_pass, setup.batch_size),
        gradient_accumulation_steps=max(1, setup.batch_size // setup.rows_per_pass),
        num_train_epochs=1,
        learning_rate=1e-4,
        bf16=setup.bf16,
    )
    tokens = 2 * sum(len(pair.prompt_ids) for pair in pairs) + sum(len(pair.chosen_ids) + len(pair.rejected_ids) + 2 for pair in pairs)
    start = _clock(setup)
    trainer.train()
    return _clock(setup) - start, tokens


def write_model(directory: Path, setup: Setup) -> None:
    """Write the untrained model."""
    write_base_model(directory, GlyphTask(), seed=0)
    if setup.model is not None:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        Qwen2ForCausalLM(Qwen2Config(**setup.model)).save_pretrained(directory)


def run_once(trainer: str, case: Case, setup: Setup, folder: Path) -> Run:
    """Train in this process."""
    import torch

    on_gpu = setup.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 1024 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train = train_trl if trainer == "TRL" else lambda *arguments: train_ours(trainer, *arguments)
    seconds, tokens = train(case, setup, folder / "model", folder / "out")
    after = torch.cuda.max_memory_allocated() / 1024 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Run(seconds=seconds, tokens=tokens, peak_mb=(after - before) / 1024)


def _prepare(trainer: str, setup: Setup, folder: Path) -> None:
    """Pay for imports and one-time set-up: write the model and make a small training."""
    import torch

    torch.set_num_threads(1)
    write_model(folder / "model", setup)
    run_once(trainer, Case(num_trees=1, depth=1, branching=3), setup, folder)


class Contestant:
    """A trainer in a process of its own."""

    def __init__(self, trainer: str, setup: Setup, root: Path) -> None:
        self.trainer = trainer
        self._setup, self._folder = setup, root / trainer.replace(" ", "-")
        self._folder.mkdir()
        self._pool = multiprocessing.get_context("spawn").Pool(1)
        self._pool.apply(_prepare, (trainer, setup, self._folder))

    def run(self, case: Case, setup: Setup | None = None) -> Run:
        """Train there."""
        return self._pool.apply(run_once, (self.trainer, case, setup or self._setup, self._folder))

    def close(self) -> None:
        """End the process."""
        self._pool.terminate()


def in_turn(contestants: list[Contestant], case: Case, repeats: int) -> dict[str, Run]:
    """Let contestants run one after the other, several times; return the least time of each, and the memory its first run added."""
    best: dict[str, Run] = {}
    for _ in range(repeats):
        for contestant in contestants:
            run, before = contestant.run(case), best.get(contestant.trainer)
            # A process's peak only grows, so later runs add nothing to it.
            best[contestant.trainer] = (
                replace(run, seconds=min(run.seconds, before.seconds), peak_mb=max(run.peak_mb, before.peak_mb)) if before else run
            )
    return best


def compare(contestants: list[Contestant], case: Case, setup: Setup, *, repeats: int, console: Console) -> None:
    """Print the trainers side by side; the last one is what the others are compared with."""
    runs = in_turn(contestants, case, repeats)
    slowest = contestants[-1].trainer
    table = Table(title=f"depth {case.depth}, branching {case.branching}: {case.num_pairs} pairs of {case.num_trees} trees, one epoch")
    for column in ("trainer", "seconds", "tokens forwarded", "of unique", f"faster than {slowest}", "memory added"):
        table.add_column(column)
    for name, run in runs.items():
        unique = num_unique_tokens(case, setup, trainer=name)
        ratio = f"{runs[slowest].seconds / run.seconds:.2f}"
        table.add_row(name, f"{run.seconds:.2f}", f"{run.tokens:,}", f"{run.tokens / unique:.2f}", ratio, f"{run.peak_mb:.0f} MB")
    console.print(table)


def sweep(trees: Contestant, trl: Contestant, path: Path, *, num_pairs: int, repeats: int, console: Console) -> None:
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
            runs = in_turn([trees, trl], case, repeats)
            ratios.append(runs["TRL"].seconds / runs["trees"].seconds)
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


def row_sizes(trees: Contestant, setup: Setup, *, repeats: int, console: Console) -> None:
    """Print the time of an epoch by the largest tree allowed, on trees of about 300 and of about 1,000 tokens."""
    for case in (Case(num_trees=8, depth=8, branching=4), Case(num_trees=2, depth=8, branching=16)):
        unique = num_unique_tokens(case, setup, trainer="trees")
        table = Table(title=f"{case.num_trees} trees of {unique // case.num_trees} tokens")
        for column in ("row_tokens", "seconds", "forwarded of unique"):
            table.add_column(column)
        best: dict[int, Run] = {}
        for _ in range(repeats):
            for size in ROW_SIZES:
                run = trees.run(case, replace(setup, row_tokens=size, batch_size=case.num_pairs))
                best[size] = min(run, best.get(size, run), key=lambda each: each.seconds)
        for size, run in best.items():
            table.add_row(str(size), f"{run.seconds:.2f}", f"{run.tokens / unique:.2f}")
        console.print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=16, help="problems")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--branching", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the fastest counts")
    parser.add_argument("--plot", type=Path, help="sweep over depth and branching and write this figure")
    parser.add_argument("--row-sizes", action="store_true", help="time an epoch by row_tokens")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, with a model of half a billion parameters")
    arguments = parser.parse_args()
    if arguments.gpu:
        from benchmarks import gpu_training

        gpu_training.main()
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    console, setup = Console(), Setup()
    case = Case(num_trees=arguments.trees, depth=arguments.depth, branching=arguments.branching)
    with tempfile.TemporaryDirectory() as folder:
        preferences = [Contestant(trainer, setup, Path(folder)) for trainer in PREFERENCES]
        compare(preferences, case, setup, repeats=arguments.repeats, console=console)
        trees, paths, trl = preferences
        paths.close()
        if arguments.plot:
            sweep(trees, trl, arguments.plot, num_pairs=case.num_pairs, repeats=1, console=console)
        if arguments.row_sizes:
            row_sizes(trees, setup, repeats=arguments.repeats, console=console)
        trees.close()
        trl.close()
        values = [Contestant(trainer, setup, Path(folder)) for trainer in PRM]
        compare(values, case, setup, repeats=arguments.repeats, console=console)
        for contestant in values:
            contestant.close()


if __name__ == "__main__":
    main()
