"""Training on a GPU: seconds to the first update, tokens per second, share of the peak, and TRL's DPOTrainer on the same pairs.

    python -m benchmarks.gpu_training              what ``python -m benchmarks.packing --gpu`` runs; about three minutes
    python -m benchmarks.gpu_training --profile    and where the time of some updates goes, at the end of the part "trees"
    python -m benchmarks.gpu_training --device cpu --small      the same parts on a CPU with a tiny model, to see that they work

The model has Qwen2.5-0.5B's shape and random weights. Pairs are those of trees of depth 8 and branching 4 with 128 tokens of prompt and
steps of 32 tokens. Every part has a process of its own, and two limits: one until its first mark, one from then on. Figures are written at
every mark, so they are kept whatever ends the part. A part that fails or is late is named, and the next one follows. Marks are progress
reports for trees (every five updates on a GPU), and passes for TRL. TRL's speed leaves its optimiser's steps out, which favours it: an
update of 384 pairs may take all its time.

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
from dataclasses import replace
from importlib.util import find_spec
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.packing import GPU, Case, Setup, make_pairs, text_rows, trl_trainer, write_model

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


class Limit(NamedTuple):
    """Limits of a part."""

    first: float
    """Seconds until its first pass ends."""
    more: float
    """Seconds from then on, after which it stops by itself."""


PARTS = {"trees": Limit(40.0, 70.0), "TRL": Limit(60.0, 15.0)}
_GRACE_S = 5.0
"""Seconds after its limit in which a part has to end before its process is killed."""
_CPU_PATIENCE = 5
"""How many times longer the first mark may take on a CPU, where nobody wants the figures and other work may run."""
TRL_TREES = 16
"""Trees whose pairs TRL trains on: its reference pass over all would take longer than the measurement."""


class Enough(Exception):
    """The time of a part is over."""


class Mark(NamedTuple):
    """The end of some updates or of a pass."""

    seconds: float
    """Since the start of the clock."""
    pairs: int
    """Pairs trained on so far."""
    tokens: int
    """Tokens forwarded so far."""
    compiled: bool = False
    """Whether the layers were compiled."""


class Clock:
    """Notes when updates or passes end, prints some of them, and keeps the figures in a file."""

    def __init__(self, seconds: float, file: Path | None = None) -> None:
        """Start.

        Args:
            seconds: Seconds from the first mark until the time is over.
            file: Where the figures are kept.
        """
        self.start, self.seconds, self.file = time.perf_counter(), seconds, file
        self.marks: list[Mark] = []

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"  {time.perf_counter() - self.start:6.1f} s: {text}", flush=True)

    def note(self, pairs: int, tokens: int, *, loss: float | None = None, compiled: bool = False) -> None:
        """Note that something ended, and raise ``Enough`` if the time is over."""
        mark = Mark(time.perf_counter() - self.start, pairs, tokens, compiled)
        changed = bool(self.marks) and self.marks[-1].compiled != compiled
        self.marks.append(mark)
        if len(self.marks) <= 3 or len(self.marks) % 10 == 0 or changed:
            said = "" if loss is None else f", loss {loss:.4f}"
            self.say(f"{pairs:,} pairs, {tokens:,} tokens{said}, {'compiled' if compiled else 'not compiled'}")
        if self.file is not None:
            keep(self.file, self.figures())
        if mark.seconds - self.marks[0].seconds > self.seconds:
            raise Enough

    def speed(self, *, compiled: bool) -> dict[str, float] | None:
        """Return pairs and tokens per second with or without compiled layers: medians, the first two of a kind left out."""
        steps = [(a, b) for a, b in pairwise(self.marks) if a.compiled == b.compiled == compiled][2:]
        if len(steps) < 3:
            return None
        return {
            "pairs_per_second": median((b.pairs - a.pairs) / (b.seconds - a.seconds) for a, b in steps),
            "tokens_per_second": median((b.tokens - a.tokens) / (b.seconds - a.seconds) for a, b in steps),
        }

    def figures(self) -> dict[str, Any]:
        """Return all figures so far."""
        found: dict[str, Any] = {"first": self.marks[0].seconds if self.marks else None, "marks": len(self.marks)}
        found["compiled_after"] = next((mark.seconds for mark in self.marks if mark.compiled), None)
        for name, compiled in (("plain", False), ("compiled", True)):
            if speed := self.speed(compiled=compiled):
                found[name] = speed
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return found


def keep(file: Path, figures: dict[str, Any]) -> None:
    """Write figures, so that a reader finds the old ones or the new ones."""
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(figures))
    temporary.replace(file)


class Profile:
    """Records what the updates between two marks do once three marks had compiled layers, and prints it."""

    def __init__(self) -> None:
        """Wait."""
        self._profiler: Any = None
        self._begin, self._first, self._seen = 0.0, 0, 0

    def note(self, step: int, *, compiled: bool) -> None:
        """Note the end of update ``step``."""
        import torch

        self._seen += compiled
        if self._seen == 3:
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA], acc_events=True
            )
            self._profiler.start()
            self._begin, self._first = time.perf_counter(), step
        elif self._seen == 4 and self._profiler is not None:
            seconds = time.perf_counter() - self._begin
            self._profiler.stop()
            rows, self._profiler = self._profiler.key_averages(), None
            busy = sum(row.self_device_time_total for row in rows if str(row.device_type).endswith("CUDA")) / 1e6
            print(f"{step - self._first} updates: {seconds:.3f} s, of which kernels {busy:.3f} s", flush=True)
            for order in ("self_device_time_total", "self_cpu_time_total"):
                print(rows.table(sort_by=order, row_limit=30, max_name_column_width=70), flush=True)


def train_trees(setup: Setup, folder: Path, clock: Clock, profile: Profile | None = None) -> None:
    """Train with stepladder."""
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
    pairs = make_pairs(CASE, setup)
    clock.say("loading, reference pass and training")

    def on_progress(step: int, _: int, loss: float, tokens: int) -> None:
        compiled = bool(len(compiled_layers))
        if profile is not None:
            profile.note(step, compiled=compiled)
        clock.note(step * setup.batch_size, tokens, loss=loss, compiled=compiled)

    train_preference(folder / "model", pairs, folder / "out", settings, renderer_hash="benchmark", on_progress=on_progress)


def train_trl(setup: Setup, folder: Path, clock: Clock) -> None:
    """Train with TRL at its best settings: reference log-probabilities once before, bfloat16; it has no padding-free mode at present."""
    from transformers import TrainerCallback

    pairs = make_pairs(replace(CASE, num_trees=TRL_TREES), setup)
    per_pair = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) + 2 for pair in pairs) / len(pairs)
    done = count(1)

    class Note(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.say("training")

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if setup.device != "cpu":
                import torch

                torch.cuda.synchronize()
            number = next(done)
            clock.note(number * setup.rows_per_pass, round(number * setup.rows_per_pass * per_pair))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.on_substep_end(args, state, control)

    clock.say(f"loading the model; reference log-probabilities of {len(pairs)} pairs")
    trainer = trl_trainer(
        text_rows(pairs),
        folder / "model",
        folder / "trl",
        device=setup.device,
        per_device_train_batch_size=setup.rows_per_pass,
        gradient_accumulation_steps=setup.batch_size // setup.rows_per_pass,
        max_steps=UPDATES,
        learning_rate=1e-5,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=2 * setup.rows_per_pass,
        bf16=setup.device != "cpu",
    )
    trainer.add_callback(Note())
    trainer.train()


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


def run_part(name: str, setup: Setup, folder: Path, *, profile: bool = False) -> None:
    """Run a part in this process, which ends with it: nothing that a library does at its end is waited for."""
    clock = Clock(PARTS[name].more, folder / f"{name}.json")
    clock.say("importing")
    try:
        if name == "trees":
            train_trees(setup, folder, clock, Profile() if profile else None)
        else:
            train_trl(setup, folder, clock)
    except Enough:
        pass
    except Exception as error:
        # What was measured before counts all the same.
        traceback.print_exc()
        keep(folder / f"{name}.json", {**clock.figures(), "error": f"{type(error).__name__}: {error}"[:300]})
    clock.say(f"the end, after {len(clock.marks)} marks")
    sys.stdout.flush()
    os._exit(0)


def watched(command: list[str], limit: Limit, file: Path) -> dict[str, Any]:
    """Run a part until it ends or its time is over, and return the figures that it kept; what ended it is among them.

    Args:
        command: What to run.
        limit: Its limits.
        file: Where it keeps its figures.
    """
    process, begin, first = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}), time.perf_counter(), None
    late = None
    while process.poll() is None and late is None:
        time.sleep(0.1)
        now = time.perf_counter() - begin
        if first is None and file.exists():
            first = now
        if first is None and now > limit.first:
            late = f"nothing within {limit.first:.0f} s"
        elif first is not None and now > first + limit.more + _GRACE_S:
            late = f"still running {now - first:.0f} s after its first mark"
    if late is not None:
        process.kill()
    process.wait()
    figures = json.loads(file.read_text()) if file.exists() else {}
    ended = late or (f"exit code {process.returncode}" if process.returncode else None)
    return figures if ended is None else {**figures, "ended": ended}


def main() -> None:
    """Run the parts one after the other and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--profile", action="store_true", help="where the time of some updates with compiled layers goes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    setup = replace(SMALL if arguments.small else SETUP, device=arguments.device)
    if arguments.part:
        run_part(arguments.part, setup, arguments.folder, profile=arguments.profile)
        return
    options = [option for option in ("--small", "--profile") if getattr(arguments, option[2:])]
    with tempfile.TemporaryDirectory() as name:
        report(setup, Path(name), options)


def report(setup: Setup, folder: Path, options: list[str]) -> None:
    """Run all parts and print their figures."""
    import torch

    begin, card = time.perf_counter(), "cpu"
    if setup.device != "cpu":
        card = torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}: writing the model", flush=True)
    write_model(folder / "model", setup)
    found: dict[str, Any] = {}
    for name, limit in PARTS.items():
        if setup.device == "cpu":
            limit = limit._replace(first=_CPU_PATIENCE * limit.first)
        if name == "TRL" and find_spec("trl") is None:
            print("TRL is not installed: no comparison", flush=True)
            continue
        print(f"{name}: at most {limit.first + limit.more:.0f} s, now {time.perf_counter() - begin:.0f} s", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_training", "--part", name, "--folder", str(folder), "--device", setup.device]
        found[name] = watched([*command, *options], limit, folder / f"{name}.json")
        if trouble := found[name].get("ended") or found[name].get("error"):
            print(f"  {name}: {trouble}", flush=True)
    print(json.dumps({"card": card, "operations_per_token": operations_per_token(setup), **found}))
    _print_ratios(found, card, operations_per_token(setup))
    print(f"{time.perf_counter() - begin:.0f} s in all", flush=True)


def _print_ratios(found: dict[str, Any], card: str, operations: float) -> None:
    peak = next((value for part, value in PEAK.items() if part in card), None)
    trees, trl = found.get("trees", {}), found.get("TRL", {})
    if trees.get("first") is not None:
        print(f"first update after {trees['first']:.1f} s, with loading and the reference pass")
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
