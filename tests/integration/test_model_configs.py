"""The files for named models, each for one small round: a random model of the same architecture and kind of tokenizer, and of the PRM's."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from stepladder.commands import evolve as evolve_command
from stepladder.data.store import read_trees
from stepladder.lm.chat import turn_end
from stepladder.loops.assembly.policies import with_chat
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow
from tests.families import FAMILIES
from tests.inline import inline_pool
from tests.prm_models import qwen_tokenizer, save_head_model
from tests.tokenizer_families import FAMILIES as TOKENIZERS

FILES = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.toml"))
REPRESENTATIVE = {"gsm8k-gemma-3-270m-it"}
"""Files that every run of the suite tests; `make test-recipes` tests all."""
SETTINGS = """
run.shard_size=12 policy.backend=transformers prm.backend=transformers policy.device=cpu policy.dtype=float32
problems.held_out_size=4 problems.train_limit=16 problems.test_limit=4 search.simulations=6 search.max_step_tokens=16 search.max_depth=4
evaluate.simulations=2 evaluate.samples=2 evaluate.options={num_children=2,wave=1} gate.min_problems=1 gate.min_rows=1
warmup.train={learning_rate=5e-3,batch_size=16,epochs=10} sft.bf16=false sft.max_updates=2 preference.bf16=false preference.max_updates=2
"""
ARCHITECTURES = {"qwen2.5": ("qwen2", "qwen"), "llama": ("llama", "llama3"), "gemma": ("gemma 3", "gemma")}
"""Architecture and tokenizer by the beginning of a model's name."""


def save_model(name: str, directory: Path) -> Path:
    """Save a random model of the architecture that a hub id names, with what ends its turns."""
    family, kind = next(found for begin, found in ARCHITECTURES.items() if name.split("/")[1].lower().startswith(begin))
    tokenizer: PreTrainedTokenizerFast = TOKENIZERS[kind]()
    config = FAMILIES[family]()
    config.vocab_size, config.eos_token_id, config.max_position_embeddings = len(tokenizer), tokenizer.eos_token_id, 512
    config.hidden_size, config.intermediate_size, config.initializer_range = 64, 128, 0.05
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
    is_chat = name.endswith(("-Instruct", "-it"))
    ends = {tokenizer.eos_token_id, *([turn_end(tokenizer)] if is_chat else [])}
    model.generation_config = GenerationConfig(eos_token_id=sorted(end for end in ends if end is not None))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_data(folder: Path, task: str) -> None:
    """Write problems in the layout of the public set, whose answers nobody can know, and solutions that guess them."""
    rng = random.Random(0)

    def rows(split: str, count: int) -> list[dict[str, Any]]:
        found = []
        for number in range(count):
            question, answer = f"{split} {number}?", rng.choice("123")
            solved = {"answer": f"So\n#### {answer}"} if task == "gsm8k" else {"solution": f"So \\boxed{{{answer}}}", "answer": answer}
            found.append({"question" if task == "gsm8k" else "problem": question, **solved})
        return found

    for split, count in (("train", 20), ("test", 4)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, count)))
    guesses = [{"id": f"w{i}", "question": f"w {i}?", "solution": f"So\n\n\\boxed{{{rng.choice('123')}}}\n\n"} for i in range(96)]
    (folder / "warmup.jsonl").write_text("".join(json.dumps(row) + "\n" for row in guesses))


@pytest.mark.parametrize(
    "path",
    [path if path.stem in REPRESENTATIVE else pytest.param(path, marks=pytest.mark.recipes) for path in FILES],
    ids=lambda path: path.stem,
)
def test_a_file_runs_to_a_finished_round(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's template is used where it is no base model; the public PRM's head scores every step; the policy learns from rows."""
    stated = load_config(path, [])
    task, test = path.name.split("-")[0], str(stated.problems.test)
    write_data(tmp_path, task)
    assert stated.prm.model is not None
    head, spec = ("v_head", "skywork-o1-open-prm") if "Skywork" in stated.prm.model else ("mlp", "qwen2.5-math-prm")
    prm = save_head_model(tmp_path / "prm", qwen_tokenizer(), head=head, num_outputs=1 if head == "v_head" else 2)
    places = {
        "problems.train": f"preset:{task}:{tmp_path / 'train.jsonl'}",
        "problems.test": f"{test}:{tmp_path / 'test.jsonl'}",
        "warmup.solutions": tmp_path / "warmup.jsonl",
        "policy.model": save_model(stated.policy.model, tmp_path / "model"),
        "prm.model": prm,
        "prm.spec": spec,
    }
    config = load_config(path, [*SETTINGS.split(), *(f"{key}={value}" for key, value in places.items())])
    config = with_chat(config, config.policy.model).config
    assert config.format.chat == stated.policy.model.endswith(("-Instruct", "-it"))
    monkeypatch.setattr(evolve_command, "open_workers", inline_pool)
    rows: list[RoundRow] = []
    run = evolve_command.evolve(config, tmp_path / "run", display=ProgressDisplay(), on_round=rows.append, stop_after=1)
    assert [row.round for row in rows] == [0, 1]
    search, training = rows[1].search, rows[1].training
    assert search is not None and search.solved > 0 and rows[1].nothing_learned is None
    assert training.policy.stages["sft"].rows > 0
    trees = [tree for shard in run.shards("trees", rounds=[1]) for tree in read_trees(shard)]
    scores = [tree.scores[node] for tree in trees for node in range(1, len(tree.parents)) if tree.token_ids[node]]
    assert scores and all(score is not None and 0.0 <= score <= 1.0 for score in scores)
