"""Everything there is to measure on one GPU, in one call: searches beside vLLM itself, trainings, and rounds of a real model.

    python -m benchmarks.gpu --out figures                           without a model: the first three parts
    python -m benchmarks.gpu --out figures --model DIR --gsm8k DIR   all parts; train.jsonl and test.jsonl of GSM8K lie in the second

    search, plain, large   tokens per second of searches beside vLLM's own requests, models of 0.5B and 7B; ``plain`` has vLLM's default
                           CUDA graphs in place of ours. The engines start side by side and measure one after the other
    training               seconds to the first update, tokens per second, and TRL
    words, gsm8k           search against samples on word problems, and a round of GSM8K; side by side, since nothing is timed

Every part is a process of its own with a time limit; one that fails or is stopped does not keep the others from running, and makes the exit
code 1. ``OUT/PART.txt`` has what it printed. ``python -m benchmarks.gpu_rehearsal`` runs all of it on a CPU at a toy size.
"""

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.many_runs import names_among

PARTS = (("search", "plain", "large"), ("training",), ("words", "gsm8k"))
"""Parts in their order; those of a group start together."""
IN_TURN = PARTS[0]
"""Parts of a group that measure only when those before them have ended."""
DEFAULT_GRAPHS = '{"compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}}'
"""The CUDA graphs that vLLM has by itself."""
SHARED_ENGINE = (
    "policy.vllm.memory_share=0.1",
    # Other processes use the GPU, too, so vLLM must not measure what is free. Without compiling it starts within seconds.
    "policy.vllm.options={kv_cache_memory_bytes=6000000000,compilation_config={mode=0}}",
)
"""Settings of an engine that shares the GPU with other processes."""


def searches(shape: str, batch: int, methods: str, *, sequences: int, cache_gb: float, more: Sequence[str] = ()) -> list[str]:
    """Return the command of a comparison of searches with vLLM itself, with ``more`` options."""
    sizes = ["--batch", str(batch), "--sequences", str(sequences), "--cache-gb", str(cache_gb)]
    return [sys.executable, "-m", "benchmarks.gpu_search", "--shape", shape, *sizes, "--methods", methods, "--seconds", "170", *more]


def gsm8k(model: Path, data: Path, out: Path, more: Sequence[str] = ()) -> list[str]:
    """Return the command of a round of GSM8K, with ``more`` settings."""
    command = [sys.executable, "-m", "benchmarks.gsm8k", "--model", str(model), "--gsm8k", str(data), "--root", str(out)]
    return command + [word for each in (*SHARED_ENGINE, *more) for word in ("--set", each)]


def words(model: Path, out: Path, options: Sequence[str] = (), more: Sequence[str] = ()) -> list[str]:
    """Return the command of the comparison on word problems, with its ``options`` and ``more`` settings."""
    command = [sys.executable, "-m", "benchmarks.word_problems", "--model", str(model), "--root", str(out), "--jobs", "2", *options]
    return command + [word for each in (*SHARED_ENGINE, *more) for word in ("--set", each)]


def run_group(commands: dict[str, list[str]], out: Path, *, limit_s: float) -> list[str]:
    """Run parts that start together, keep what they print, and print its end.

    Returns:
        The names of the parts that failed or were stopped.
    """
    begin = time.perf_counter()
    in_turn = [name for name in IN_TURN if name in commands]
    before = dict(itertools.pairwise(reversed(in_turn)))
    for name in in_turn:
        (out / f"{name}.ended").unlink(missing_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed = []
    try:
        for name, command in commands.items():
            print(f"== {name}: {' '.join(command[1:4])}", flush=True)
            more = ["--after", str(out / f"{before[name]}.ended")] if name in before else []
            with (out / f"{name}.txt").open("wb") as log:
                running[name] = subprocess.Popen([*command, *more], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        for name, process in running.items():
            # A part that waits for another one has its time from then on.
            left = limit_s - (0.0 if name in before else time.perf_counter() - begin)
            try:
                code = process.wait(timeout=max(left, 1.0))
                ended = f"exit code {code}"
            except subprocess.TimeoutExpired:
                code, ended = None, "stopped at its limit"
            _kill(process)
            if code != 0:
                failed.append(name)
            print(f"== {name}: {ended} after {time.perf_counter() - begin:.0f} s", flush=True)
            print((out / f"{name}.txt").read_text(encoding="utf-8", errors="replace")[-4000:], flush=True)
            if name in in_turn:
                (out / f"{name}.ended").touch()
    finally:
        for process in running.values():
            _kill(process)
    return failed


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a part with all processes that it started and left, so that they hold no memory of the GPU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_parts(commands: dict[str, list[str]], out: Path, *, limit_s: float) -> None:
    """Run parts in groups, and exit with 1 if any failed or was stopped."""
    failed = []
    for group in PARTS:
        if chosen := {name: commands[name] for name in group if name in commands}:
            failed += run_group(chosen, out, limit_s=limit_s)
    if failed:
        sys.exit(f"failed or stopped: {', '.join(failed)}")


def main() -> None:
    """Run the parts."""
    known = [name for group in PARTS for name in group]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for what the parts print")
    parser.add_argument("--model", type=Path, help="a small base model, such as Gemma 3 270M")
    parser.add_argument("--gsm8k", type=Path, help="directory with train.jsonl and test.jsonl")
    parser.add_argument("--parts", type=names_among(known), default=known, help="by commas")
    parser.add_argument("--limit-s", type=float, default=270.0, help="seconds of a part")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    commands = {
        "search": searches("0.5b", 512, "mcts:4,mcts:4:1,majority:32,beam:4,mcts:8", sequences=2048, cache_gb=5, more=["--processes", "3"]),
        "plain": searches("0.5b", 512, "mcts:4,mcts:4:1", sequences=2048, cache_gb=5, more=["--options", DEFAULT_GRAPHS]),
        "large": searches("7b", 256, "mcts:4,mcts:4:1,majority:32,beam:4", sequences=768, cache_gb=10),
        "training": [sys.executable, "-m", "benchmarks.gpu_training"],
    }
    if arguments.model is not None:
        commands["words"] = words(arguments.model, arguments.out / "words")
        if arguments.gsm8k is not None:
            commands["gsm8k"] = gsm8k(arguments.model, arguments.gsm8k, arguments.out / "gsm8k")
    run_parts({name: command for name, command in commands.items() if name in arguments.parts}, arguments.out, limit_s=arguments.limit_s)


if __name__ == "__main__":
    main()
