"""Exports: directories that load as data sets, and that TRL trains on as they stand."""

from dataclasses import replace

import pytest

from stepladder.data.export import EXPORT_FORMATS, export_dataset
from stepladder.data.store import write_pairs, write_traces, write_trees, write_values
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.types import PreferencePair, Provenance, Trace, TreeRecord, ValueRow

FIRST = Provenance(round=1, policy_version=0, scorer_version=None, seed=5, config_hash="c" * 16, renderer_hash="r" * 16)
SECOND = replace(FIRST, round=2, policy_version=1, scorer_version=1)
PAIR = PreferencePair(
    problem_id="a",
    prompt_ids=[4, 5],
    chosen_ids=[6],
    rejected_ids=[7, 8],
    prompt="1+1+1\n1+1=2\n",
    chosen="2+1=3\n",
    rejected="2+1=4\n",
    chosen_value=0.9,
    rejected_value=0.2,
    depth=2,
    chosen_visits=9,
    rejected_visits=3,
    provenance=FIRST,
)
ROWS = {
    "preference": (write_pairs, PAIR),
    "value": (
        write_values,
        ValueRow(
            problem_id="a",
            prompt_ids=[4],
            step_ids=[[5], [6, 7]],
            targets=[None, 0.5],
            prompt="1+1",
            steps=["x\n", "y\n"],
            provenance=FIRST,
        ),
    ),
    "sft": (
        write_traces,
        Trace(problem_id="a", prompt_ids=[4], completion_ids=[5, 6], prompt="1+1", completion="=2\n", mean_value=0.75, provenance=FIRST),
    ),
    "tree": (
        write_trees,
        TreeRecord(
            problem_id="a",
            question="1+1",
            prompt_ids=[4],
            method="mcts",
            parents=[-1, 0],
            depths=[0, 1],
            token_ids=[[], [5]],
            logps=[[], [-0.5]],
            texts=["", "=2\n"],
            priors=[1.0, 1.0],
            scores=[None, 0.5],
            visits=[1, 1],
            values=[1.0, 1.0],
            stop_reasons=["step", "end"],
            answers=[None, "2"],
            outcomes=[None, 1.0],
            generated_tokens=1,
            policy_calls=1,
            scored_tokens=1,
            num_simulations=1,
            provenance=FIRST,
        ),
    ),
}
EXPECTED = {
    "preference": {
        "prompt": "1+1+1\n1+1=2\n",
        "chosen": "2+1=3\n",
        "rejected": "2+1=4\n",
        "prompt_token_ids": [4, 5],
        "chosen_token_ids": [6],
        "rejected_token_ids": [7, 8],
        "chosen_value": 0.9,
        "rejected_value": 0.2,
        "depth": 2,
        "chosen_visits": 9,
        "rejected_visits": 3,
    },
    "value": {
        "prompt": "1+1\n",
        "completions": ["x\n", "y\n"],
        "labels": [None, 0.5],
        "prompt_token_ids": [4],
        "completion_token_ids": [[5], [6, 7]],
    },
    "sft": {"prompt": "1+1\n", "completion": "=2\n", "prompt_token_ids": [4], "completion_token_ids": [5, 6], "mean_value": 0.75},
    "tree": {
        "question": "1+1",
        "parents": [-1, 0],
        "token_ids": [[], [5]],
        "scores": [None, 0.5],
        "answers": [None, "2"],
        "outcomes": [None, 1.0],
    },
}


@pytest.fixture
def load(tmp_path):
    """``datasets.load_dataset`` with a cache of this test's own."""
    import datasets

    return lambda directory: datasets.load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_export_loads_as_a_data_set(tmp_path, load, format):
    """Rows, order, columns and provenance come back from ``load_dataset``, and an empty shard among full ones does no harm."""
    write, row = ROWS[format]
    other = replace(row, problem_id="ü", provenance=SECOND)
    shards = [tmp_path / name for name in ("s0", "s1", "s2")]
    for path, rows in zip(shards, [[row, row], [], [other]], strict=True):
        write(path, rows)
    assert export_dataset(shards, format=format, out_dir=tmp_path / "out") == 3
    data = load(tmp_path / "out")
    assert [(row["problem_id"], row["round"], row["policy_version"], row["scorer_version"]) for row in data] == [
        ("a", 1, 0, None),
        ("a", 1, 0, None),
        ("ü", 2, 1, 1),
    ]
    assert (data[0]["seed"], data[0]["config_hash"], data[0]["renderer_hash"]) == (5, "c" * 16, "r" * 16)
    assert {name: data[0][name] for name in EXPECTED[format]} == EXPECTED[format]
    assert set(data.column_names) == {"problem_id", *EXPORT_FORMATS[format].columns, *Provenance.__dataclass_fields__}
    assert "prompt_ids" not in data.column_names or format == "tree"


def test_data_card_states_counts_columns_and_provenance(tmp_path):
    """The card's front matter names the files; its text has the counts, every column and every value of the provenance."""
    write_pairs(tmp_path / "s0", [PAIR, replace(PAIR, provenance=SECOND, problem_id="b")])
    export_dataset([tmp_path / "s0"], format="preference", out_dir=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\npretty_name:")
    assert "path: data/train-*.parquet" in card.split("---")[1]
    assert "2 rows from 2 problems" in card
    for column in EXPORT_FORMATS["preference"].columns:
        assert f"| `{column}` | " in card
    for line in ("| `round` | `1`, `2` |", "| `scorer_version` | `1`, `None` |", f"| `config_hash` | `{'c' * 16}` |", "| `seed` | `5` |"):
        assert line in card


def test_export_is_deterministic(tmp_path):
    """The same shards give the same files, byte for byte."""
    write_pairs(tmp_path / "s0", [PAIR])
    for out in ("one", "two"):
        export_dataset([tmp_path / "s0"], format="preference", out_dir=tmp_path / out)
    files = [{path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*.*")} for out in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) == 2


def test_export_never_removes_what_it_did_not_make(tmp_path):
    """An occupied directory is refused; with overwrite an earlier export is replaced, and nothing else ever is."""
    write_pairs(tmp_path / "s0", [PAIR])
    out = tmp_path / "out"
    out.mkdir()
    export_dataset([tmp_path / "s0"], format="preference", out_dir=out)
    with pytest.raises(CheckpointError, match="it holds an earlier export -- choose another directory or pass --overwrite"):
        export_dataset([tmp_path / "s0"], format="preference", out_dir=out)
    write_pairs(tmp_path / "s0", [PAIR, PAIR])
    assert export_dataset([tmp_path / "s0"], format="preference", out_dir=out, overwrite=True) == 2
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "README.md").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="files that are no export of stepladder"):
            export_dataset([tmp_path / "s0"], format="preference", out_dir=precious, overwrite=overwrite)
    with pytest.raises(CheckpointError, match="it is a file"):
        export_dataset([tmp_path / "s0"], format="preference", out_dir=precious / "README.md", overwrite=True)
    assert (precious / "README.md").read_text() == "mine"


def test_failed_export_leaves_nothing_half_written(tmp_path):
    """A bad shard among good ones leaves neither a directory nor temporaries."""
    write_pairs(tmp_path / "s0", [PAIR])
    write_trees(tmp_path / "s1", [])
    with pytest.raises(DataFormatError, match="s1: must be a shard of pairs"):
        export_dataset([tmp_path / "s0", tmp_path / "s1"], format="preference", out_dir=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s0", "s1"]
    write_pairs(tmp_path / "s1", [])
    with pytest.raises(DataFormatError, match="needs at least one row: the 1 shards hold none"):
        export_dataset([tmp_path / "s1"], format="preference", out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataFormatError, match="needs at least one shard"):
        export_dataset([], format="preference", out_dir=tmp_path / "out")
    with pytest.raises(ConfigError, match="must be one of preference, value, sft, tree: got 'csv'"):
        export_dataset([tmp_path / "s0"], format="csv", out_dir=tmp_path / "out")


@pytest.mark.slow
def test_preference_export_trains_with_dpo_trainer_as_it_stands(tmp_path, load):
    """TRL takes the loaded data set without any change, tokenises our text columns and not our token ids, and updates the model."""
    from trl import DPOConfig, DPOTrainer

    from stepladder.lm.loading import load_causal_lm, load_tokenizer
    from tests.models import save_tiny_policy

    model_dir = save_tiny_policy(tmp_path / "model")
    write_pairs(tmp_path / "s0", [replace(PAIR, problem_id=f"p{i}", depth=1 + i % 2) for i in range(4)])
    export_dataset([tmp_path / "s0"], format="preference", out_dir=tmp_path / "out")
    settings = DPOConfig(
        output_dir=str(tmp_path / "dpo"),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    model = load_causal_lm(model_dir, device="cpu")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    tokenizer = load_tokenizer(model_dir)
    trainer = DPOTrainer(model=model, args=settings, train_dataset=load(tmp_path / "out"), processing_class=tokenizer)
    assert tokenizer.decode(trainer.train_dataset[0]["chosen_ids"]) == "2+1=3\n" + tokenizer.eos_token
    assert tokenizer.decode(trainer.train_dataset[0]["prompt_ids"]) == PAIR.prompt
    loss = trainer.train().training_loss
    assert 0 < loss < 10
    assert any((weight != before[name]).any() for name, weight in model.named_parameters())
