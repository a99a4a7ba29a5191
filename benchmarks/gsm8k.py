"""A round of GSM8K with a small base model: a warm-up on solved examples, search, both trainings, and evaluation before and after.

    python -m benchmarks.gsm8k --model DIR --gsm8k DIR                           on a GPU, with vLLM
    python -m benchmarks.gsm8k --model DIR --gsm8k DIR --cpu --solved 1500 --problems 128      on one CPU core; the warm-up alone takes long

train.jsonl and test.jsonl of GSM8K lie in the second directory. The settings are those of ``configs/gsm8k.toml`` with less search. On a CPU
the model keeps only the tokens that GSM8K needs (``small_vocabulary``), and computes in bfloat16 there, too.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.small_vocabulary import cut_vocabulary
from stepladder.files import atomic_write_text
from stepladder.loops.config.load import load_config

CONFIG = Path("configs/gsm8k.toml")
SOLVED = 3000
PROBLEMS = 256
ON_GPU = ("policy.backend=vllm", "policy.max_batch=512", "policy.vllm.max_context=1024")
ON_CPU = ("policy.backend=transformers", "policy.max_batch=128", "run.workers=1", "warmup.train.micro_batch_size=4")


def rows_of(file: Path, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first problems of a file, or all."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def write_solutions(data: Path, file: Path, count: int) -> None:
    """Write solved examples of the training problems for the warm-up."""
    rows = enumerate(rows_of(data / "train.jsonl", count))
    solved = [{"id": f"warm-up-{number}", "question": row["question"], "solution": row["answer"]} for number, row in rows]
    atomic_write_text(file, "".join(json.dumps(row) + "\n" for row in solved))


def write_small_model(model: Path, data: Path, out: Path) -> None:
    """Save the model with the tokens that GSM8K needs, unless it is there."""
    prompt = load_config(CONFIG, []).format.prompt_template
    rows = [*rows_of(data / "train.jsonl"), *rows_of(data / "test.jsonl")]
    cut_vocabulary(model, out, [prompt, *(f"Problem: {row['question']}\nSolution:\n{row['answer']}\n" for row in rows)])


def settings(model: Path, data: Path, solutions: Path, *, problems: int, on_cpu: bool) -> list[str]:
    """Return the settings beside those of the file."""
    return [
        f"policy.model={model}",
        "policy.dtype=bfloat16",
        f"problems.train={data / 'train.jsonl'}",
        f"problems.test={data / 'test.jsonl'}",
        "problems.subset=null",
        f"problems.train_limit={problems}",
        f"problems.held_out_size={problems // 4}",
        f"problems.held_out_limit={problems // 4}",
        f"problems.test_limit={problems}",
        f"warmup.solutions={solutions}",
        # One epoch at 1e-5 gave 2% right answers, too few to learn from.
        "warmup.train={learning_rate=5e-5,epochs=3,batch_size=32,bf16=true}",
        "run.rounds=1",
        # One engine has work for all problems at once.
        f"run.shard_size={problems}",
        "search.simulations=16",
        "search.max_depth=8",
        "search.max_step_tokens=64",
        "evaluate.simulations=8",
        "evaluate.samples=4",
        "sft.bf16=true",
        "preference.bf16=true",
        "prm.train.bf16=true",
        "prm.rollouts=4",
        *(ON_CPU if on_cpu else ON_GPU),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the files, and run the round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a small base model, such as Gemma 3 270M")
    parser.add_argument("--gsm8k", type=Path, required=True, help="directory with train.jsonl and test.jsonl")
    parser.add_argument("--root", type=Path, default=Path("runs/gsm8k"), help="directory of the run; the same command goes on")
    parser.add_argument("--cpu", action="store_true", help="sample with transformers on a CPU, with the tokens that GSM8K needs alone")
    parser.add_argument("--solved", type=int, default=SOLVED, help="solved examples of the warm-up")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="problems to search, and test problems")
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    given = parser.parse_args(arguments)
    data, root, model = given.gsm8k.resolve(), given.root.resolve(), given.model.resolve()
    root.mkdir(parents=True, exist_ok=True)
    write_solutions(data, root / "solutions.jsonl", given.solved)
    if given.cpu:
        write_small_model(model, data, small := root / f"{model.name}-small")
        model = small
    overrides = [*settings(model, data, root / "solutions.jsonl", problems=given.problems, on_cpu=given.cpu), *given.more]
    command = [sys.executable, "-m", "stepladder", "evolve", str(CONFIG), "--run-dir", str(root / "run")]
    sys.exit(subprocess.call(command + [word for each in overrides for word in ("--set", each)]))


if __name__ == "__main__":
    main()
