"""Everything there is to measure on one GPU, in one call: searches beside vLLM itself, trainings, and a round of GSM8K on a real model.

    python -m benchmarks.gpu --out figures                           without a model: all parts but the last
    python -m benchmarks.gpu --out figures --model DIR --gsm8k DIR   all parts; train.jsonl and test.jsonl of GSM8K lie in the second

Every part is a process of its own with a time limit; one that fails or is stopped does not keep the others from running. ``OUT/PART.txt``
has what it printed.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

WARM_UP_SOLUTIONS = 3000
PROBLEMS = 256


def searches(shape: str, batch: int, methods: str) -> list[str]:
    """Return the command of a comparison of searches with vLLM itself."""
    return [sys.executable, "-m", "benchmarks.gpu_search", "--shape", shape, "--batch", str(batch), "--methods", methods]


def gsm8k(model: Path, data: Path, out: Path) -> list[str]:
    """Return the command of a round of GSM8K; writes the solved examples for its warm-up."""
    out.mkdir(parents=True, exist_ok=True)
    solutions = out / "solutions.jsonl"
    with (data / "train.jsonl").open(encoding="utf-8") as source, solutions.open("w", encoding="utf-8") as target:
        for number, line in enumerate(itertools.islice(source, WARM_UP_SOLUTIONS)):
            problem = json.loads(line)
            row = {"id": f"warm-up-{number}", "question": problem["question"], "solution": problem["answer"]}
            target.write(json.dumps(row) + "\n")
    overrides = [
        f"policy.model={model}",
        "policy.backend=vllm",
        "policy.dtype=bfloat16",
        "policy.max_batch=512",
        "policy.vllm.max_context=1024",
        "policy.vllm.memory_share=0.5",
        f"problems.train={data / 'train.jsonl'}",
        f"problems.test={data / 'test.jsonl'}",
        "problems.subset=null",
        f"problems.train_limit={PROBLEMS}",
        "problems.held_out_size=64",
        "problems.held_out_limit=64",
        f"problems.test_limit={PROBLEMS}",
        f"warmup.solutions={solutions}",
        "warmup.train={learning_rate=1e-5,epochs=1,batch_size=32,bf16=true}",
        "run.rounds=1",
        "search.simulations=16",
        "search.max_depth=8",
        "search.max_step_tokens=64",
        "evaluate.simulations=8",
        "evaluate.samples=4",
        "sft.bf16=true",
        "preference.bf16=true",
        "prm.train.bf16=true",
        "prm.rollouts=4",
    ]
    command = [sys.executable, "-m", "stepladder", "evolve", "configs/gsm8k.toml", "--run-dir", str(out / "run")]
    return command + [word for each in overrides for word in ("--set", each)]


def run(name: str, command: list[str], out: Path, *, limit_s: float) -> None:
    """Run a part, print it as it goes, and keep what it printed."""
    print(f"== {name}: {' '.join(command[1:4])}", flush=True)
    begin = time.perf_counter()
    with (out / f"{name}.txt").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False)
            ended = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = "stopped at its limit"
    print(f"== {name}: {ended} after {time.perf_counter() - begin:.0f} s", flush=True)
    print((out / f"{name}.txt").read_text(encoding="utf-8")[-4000:], flush=True)


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for what the parts print")
    parser.add_argument("--model", type=Path, help="a small base model, such as Gemma 3 270M")
    parser.add_argument("--gsm8k", type=Path, help="directory with train.jsonl and test.jsonl")
    parser.add_argument("--parts", default="search,large,training,gsm8k", help="by commas")
    parser.add_argument("--limit-s", type=float, default=240.0, help="seconds of a part")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    commands = {
        "search": searches("0.5b", 512, "majority:32,best-of-n:32,mcts:1,mcts:4,mcts:8,beam:4"),
        "large": searches("7b", 256, "majority:32,mcts:4,beam:4"),
        "training": [sys.executable, "-m", "benchmarks.packing", "--gpu"],
    }
    if arguments.model is not None and arguments.gsm8k is not None:
        commands["gsm8k"] = gsm8k(arguments.model, arguments.gsm8k, arguments.out / "gsm8k")
    for name in arguments.parts.split(","):
        if name in commands:
            run(name, commands[name], arguments.out, limit_s=arguments.limit_s)


if __name__ == "__main__":
    main()
