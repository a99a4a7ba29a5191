"""All parts of ``benchmarks.gpu`` at a toy size on a CPU, with vLLM's CPU build: do this before you borrow a GPU.

    python -m benchmarks.gpu_rehearsal --out build/rehearsal

The figures mean nothing. The exit code is 0 if every part ran to its end. The model is a tiny one for single characters; the problems have
the form of GSM8K and answers that nobody can know, so that a model which has learnt the form solves half of them, and every stage of the
round has something to learn from.
"""

import argparse
import json
import random
import string
import sys
from pathlib import Path
from typing import cast

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu import DEFAULT_GRAPHS, PARTS, gsm8k, run_parts, searches, words
from benchmarks.many_runs import names_among
from stepladder.embedded.model import symbol_tokenizer

TRAIN, TEST = 96, 8
CONTEXT = 1024
SMALL_ENGINE = (
    "policy.max_batch=16",
    "policy.vllm.options={kv_cache_memory_bytes=200000000,compilation_config={mode=0}}",
)
SMALL_ROUND = (
    "problems.train_limit=12",
    "problems.held_out_size=8",
    "problems.held_out_limit=8",
    f"problems.test_limit={TEST}",
    "search.simulations=4",
    "search.max_depth=3",
    "search.max_step_tokens=16",
    "search.options={num_children=4,wave=1}",
    "evaluate.simulations=4",
    "evaluate.options={num_children=2,wave=1}",
    "warmup.train={learning_rate=3e-3,epochs=20,batch_size=16,bf16=true}",
    "gate.min_problems=1",
    "gate.min_rows=1",
)
SMALL_WORDS = ("--problems", "2", "--tests", "2", "--solved", "8", "--tokens", "200", "--updates", "3")


def save_toy_model(folder: Path) -> None:
    """Save a tiny model with a token for each character of ASCII."""
    tokenizer = symbol_tokenizer(list(string.printable), pattern=r"[\s\S]")
    tokenizer.model_max_length = CONTEXT
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_toy_problems(folder: Path) -> None:
    """Write problems in the form of GSM8K; a solution names one of two numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        rows = [{"question": f"{split} {i}?", "answer": "x = {0}\n#### {0}".format(rng.choice("12"))} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Rehearse the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for models, runs and what the parts print")
    known = [name for group in PARTS for name in group]
    parser.add_argument("--parts", type=names_among(known), default=known, help="by commas")
    arguments = parser.parse_args()
    out: Path = arguments.out
    save_toy_model(out / "model")
    write_toy_problems(out / "problems")
    small = {"sequences": 32, "cache_gb": 0.2}
    commands = {
        "search": searches("tiny", 16, "mcts:4,mcts:4:1,majority:32,beam:4,mcts:8", more=["--processes", "2"], **small),
        "plain": searches("tiny", 16, "mcts:4,mcts:4:1", more=["--options", DEFAULT_GRAPHS], **small),
        "large": searches("tiny", 16, "mcts:4,mcts:4:1,majority:32,beam:4", **small),
        "training": [sys.executable, "-m", "benchmarks.gpu_training", "--device", "cpu", "--small"],
        "words": words(out / "model", out / "words", SMALL_WORDS, SMALL_ENGINE),
        "gsm8k": gsm8k(out / "model", out / "problems", out / "gsm8k", (*SMALL_ENGINE, *SMALL_ROUND)),
    }
    run_parts({name: command for name, command in commands.items() if name in arguments.parts}, out, limit_s=900.0)


if __name__ == "__main__":
    main()
