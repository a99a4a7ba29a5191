"""Training on a GPU: seconds to the first update, tokens per second, share of the peak, and TRL's DPOTrainer on the same pairs.

    python -m benchmarks.gpu_training              what ``python -m benchmarks.packing --gpu`` runs; at most three minutes
    python -m benchmarks.gpu_training --device cpu --small      the same parts on a CPU with a tiny model, to see that they work

The model has Qwen2.5-0.5B's shape and random weights. Pairs are those of trees of depth 8 and branching 4 with 128 tokens of prompt and
steps of 32 tokens. Every part has a process and a time limit of its own. A part that fails or is late is named, and the next one follows.

Share of the peak = operations of the matrix products per second / the card's dense bfloat16 operations per second, 989e12 on H100 and H200
(NVIDIA's data sheets of the SXM modules). The operations of an update are ``ModelFlops.training``: 6 x weights of the layers x tokens + 6 x
weights of the head x positions that predict + 12 x layers x query width x pairs of tokens that see each other. Tokens of the reference pass
are not in them, nor what the head computes twice.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.packing import GPU, Case, Setup, make_pairs, write_model

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations per second by a part of the card's name."""
CASE = Case(num_trees=64, depth=8, branching=4)
SETUP = replace(GPU, batch_size=384, rows_per_pass=16)
SMALL = replace(
    SETUP,
    prompt_tokens=12,
    step_tokens=4,
    batch_size=96,
    device="cpu",
    model={**(GPU.model or {}), "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16},
)
UPDATES = 250
PARTS = {"trees": (75.0, 95.0), "TRL": (35.0, 60.0)}
"""Seconds after which a part stops by itself, counted from the start of the training, and after which its process is ended."""


class Enough(Exception):
    """The time of a part is over."""


class Clock:
    """Notes when updates end and prints them."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.perf_counter(), seconds
        self.marks: list[tuple[float, int, bool]] = []

    def note(self, step: int, loss: float | None, tokens: int, *, compiled: bool = False) -> None:
        """Note the end of an update, and raise ``Enough`` if the time is over."""
        now = time.perf_counter() - self.start
        self.marks.append((now, tokens, compiled))
        if step <= 3 or step % 10 == 0 or compiled != (self.marks[-2][2] if len(self.marks) > 1 else False):
            said = "" if loss is None else f", loss {loss:.4f}"
            print(f"  {now:6.1f} s: update {step}{said}, {'compiled' if compiled else 'not compiled'}", flush=True)
        if now > self.seconds:
            raise Enough

    def speed(self, *, compiled: bool) -> tuple[float, float] | None:
        """Return (seconds per update, tokens per second) with or without compiled layers: medians, the first updates of a kind left out."""
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.marks) if a[2] == b[2] == compiled][2:]
        if len(steps) < 3:
            return None
        return median(seconds for seconds, _ in steps), median(tokens / seconds for seconds, tokens in steps)


def train_trees(setup: Setup, folder: Path, seconds: float) -> dict[str, Any]:
    """Train with stepladder; return the figures."""
    from stepladder.lm.settings import TrainSettings
    from stepladder.lm.tree_attention import compiled_layers
    from stepladder.policy.fine_tuning import train_preference

    settings = TrainSettings(
        learning_rate=1e-5,
        updates=UPDATES,
        batch_size=setup.batch_size,
        packed=True,
        row_tokens=setup.row_tokens,
        device=setup.device,
    )
    pairs, clock = make_pairs(CASE, setup), Clock(seconds)

    def on_progress(step: int, _: int, loss: float, tokens: int) -> None:
        clock.note(step, loss, tokens, compiled=bool(len(compiled_layers)))

    def work() -> None:
        train_preference(folder / "model", pairs, folder / "out", settings, renderer_hash="benchmark", on_progress=on_progress)

    return {**_until_enough(work, setup), **_figures(clock, setup)}


def train_trl(setup: Setup, folder: Path, seconds: float) -> dict[str, Any]:
    """Train with TRL at its best settings: reference log-probabilities once before, bfloat16; it has no padding-free mode at present."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    from stepladder.lm.loading import load_causal_lm, load_tokenizer

    disable_progress_bars()
    pairs = make_pairs(CASE, setup)
    rows = Dataset.from_list([{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs])
    settings = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=setup.rows_per_pass,
        gradient_accumulation_steps=setup.batch_size // setup.rows_per_pass,
        max_steps=UPDATES,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=2 * setup.rows_per_pass,
        bf16=setup.device != "cpu",
        max_length=None,
        use_cpu=setup.device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    clock = Clock(seconds)
    per_update = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) + 2 for pair in pairs) / len(pairs)

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if setup.device != "cpu":
                import torch

                torch.cuda.synchronize()
            clock.note(state.global_step, None, round(state.global_step * per_update * setup.batch_size))

    model, tokenizer = load_causal_lm(folder / "model", device=setup.device, dtype="float32"), load_tokenizer(folder / "model")
    trainer = DPOTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Note())
    return {**_until_enough(trainer.train, setup), **_figures(clock, setup)}


def _until_enough(work: Callable[[], Any], setup: Setup) -> dict[str, Any]:
    try:
        work()
    except Enough:
        pass
    except Exception as error:
        # What was measured before counts all the same.
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    if setup.device == "cpu":
        return {}
    import torch

    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def _figures(clock: Clock, setup: Setup) -> dict[str, Any]:
    found: dict[str, Any] = {"first_update": clock.marks[0][0] if clock.marks else None, "updates": len(clock.marks)}
    found["compiled_after"] = next((now for now, _, compiled in clock.marks if compiled), None)
    for name, compiled in (("plain", False), ("compiled", True)):
        if speed := clock.speed(compiled=compiled):
            found[name] = {"pairs_per_second": setup.batch_size / speed[0], "tokens_per_second": speed[1]}
    return found


def operations_per_token(setup: Setup) -> float:
    """Return the operations of training on the trees, per token forwarded."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from stepladder.lm.flops import flops_of
    from stepladder.lm.packing import pack_rows
    from stepladder.policy.fine_tuning import preference_rows

    with torch.device("meta"):
        flops = flops_of(Qwen2ForCausalLM(Qwen2Config(**(setup.model or {}))))
    rows = preference_rows(make_pairs(replace(CASE, num_trees=1), setup), vocabulary=10**6, dropped={})
    trees = pack_rows(rows, row_tokens=setup.row_tokens)
    tokens = sum(tree.length for tree in trees)
    # All positions predict a token that is learned but those of the prompt before its last.
    read = tokens - len(trees) * (setup.prompt_tokens - 1)
    return flops.training(tokens, seen=float(sum((tree.tree.depths + 1).sum() for tree in trees)), read=read) / tokens


def run_part(name: str, setup: Setup, folder: Path) -> None:
    """Run a part in this process and write its figures."""
    train = {"trees": train_trees, "TRL": train_trl}[name]
    figures = train(setup, folder, PARTS[name][0])
    (folder / f"{name}.json").write_text(json.dumps(figures))


def main() -> None:
    """Run the parts one after the other and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    setup = replace(SMALL if arguments.small else SETUP, device=arguments.device)
    if arguments.part:
        run_part(arguments.part, setup, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        report(setup, Path(name), ["--small"] if arguments.small else [])


def report(setup: Setup, folder: Path, options: list[str]) -> None:
    """Run all parts and print their figures."""
    import torch

    begin, card = time.perf_counter(), "cpu"
    if setup.device != "cpu":
        card = torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}: writing the model", flush=True)
    write_model(folder / "model", setup)
    found: dict[str, Any] = {}
    for name, (_, limit) in PARTS.items():
        if name == "TRL" and find_spec("trl") is None:
            print("TRL is not installed: no comparison", flush=True)
            continue
        print(f"{name} (at most {limit:.0f} s, now {time.perf_counter() - begin:.0f} s)", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_training", "--part", name, "--folder", str(folder), "--device", setup.device]
        try:
            subprocess.run([*command, *options], check=True, timeout=limit, env={**os.environ, "PYTHONUNBUFFERED": "1"})
            found[name] = json.loads((folder / f"{name}.json").read_text())
        except (subprocess.SubprocessError, OSError) as error:
            print(f"  {name} has no figures: {error}", flush=True)
    print(json.dumps({"card": card, "operations_per_token": operations_per_token(setup), **found}))
    _print_ratios(found, card, operations_per_token(setup))
    print(f"{time.perf_counter() - begin:.0f} s in all", flush=True)


def _print_ratios(found: dict[str, Any], card: str, operations: float) -> None:
    peak = next((value for part, value in PEAK.items() if part in card), None)
    trees, trl = found.get("trees", {}), found.get("TRL", {})
    if trees.get("first_update") is not None:
        print(f"first update after {trees['first_update']:.1f} s, with loading and the reference pass")
    for kind in ("plain", "compiled"):
        if kind in trees:
            speed = trees[kind]["tokens_per_second"]
            share = f"{operations * speed / peak:.1%} of the peak" if peak else "peak unknown"
            against = (
                f", {trees[kind]['pairs_per_second'] / trl['plain']['pairs_per_second']:.1f} times TRL's pairs/s" if "plain" in trl else ""
            )
            print(f"trees, {kind}: {speed:,.0f} tokens/s, {share}, {trees[kind]['pairs_per_second']:.0f} pairs/s{against}")


if __name__ == "__main__":
    main()
