"""Exports: directories that load as data sets, say what they hold, and come back as the rows they were made of."""

import json
import re
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from stepladder.data.datasets.labelled_solutions import load_stepwise
from stepladder.data.exports.card import CardFacts, Exploration
from stepladder.data.exports.dataset import ExportJob, export_dataset, find_format, import_dataset, restored_kind
from stepladder.data.exports.formats import EXPORT_FORMATS
from stepladder.data.exports.rows import ExportSource
from stepladder.data.exports.shards import OpenShard
from stepladder.data.labels.advantages import AdvantageForm
from stepladder.data.labels.graded import GradedSolutions
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.labels.values import ValueTarget
from stepladder.data.store import (
    GRADED,
    PAIRS,
    TRACES,
    TREES,
    VALUES,
    read_records,
    write_pairs,
    write_records,
    write_trees,
)
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.types import GradedRow, PreferencePair, Provenance, Trace, TreeRecord, ValueRow

FIRST = Provenance(round=1, policy_version=0, scorer_version=None, seed=2**62, config_hash="c" * 16, renderer_hash="r" * 16)
SECOND = replace(FIRST, round=2, policy_version=1, scorer_version=1)
QUESTION = "1+1+1"
PAIR = PreferencePair(
    problem_id="a",
    prompt_ids=[4, 5],
    chosen_ids=[6],
    rejected_ids=[7, 8],
    prompt=f"{QUESTION}\n1+1=2\n",
    chosen="2+1=3\n",
    rejected="2+1=4\n",
    chosen_value=0.9,
    rejected_value=0.1 + 0.2,
    depth=2,
    chosen_visits=9,
    rejected_visits=3,
    chosen_logps=[-0.5],
    rejected_logps=[-0.25, -1e-300],
    agreement=2 / 3,
    uncertainty=None,
    provenance=FIRST,
)
TRACE = Trace(
    problem_id="a", prompt_ids=[4], completion_ids=[5, 6], prompt=QUESTION, completion="1+1=2\n2+1=3\n", mean_value=1 / 3, provenance=FIRST
)
PATH = ValueRow(
    problem_id="a",
    prompt_ids=[4],
    step_ids=[[5], [6, 7]],
    targets=[None, 1 / 3],
    prompt=QUESTION,
    steps=["x\n", "y\u2028\n"],
    provenance=FIRST,
)
# Node 1 leads to a right and a wrong solution (3 and 4); below node 2 the token limit cut one solution (5) and the policy failed once (6).
# Shares of right ones: root 1/4, node 1 1/2, node 2 0.
TREE = TreeRecord(
    problem_id="a",
    question=QUESTION,
    prompt_ids=[4],
    method="mcts",
    parents=[-1, 0, 0, 1, 1, 2, 2],
    depths=[0, 1, 1, 2, 2, 2, 2],
    token_ids=[[], [5], [6], [7, 8], [9], [10], []],
    logps=[[], [-0.5], [-0.25], [-1e-300, -0.1], [-0.2], [-0.3], []],
    texts=["", "1+1=2\n", "1+1=3\n", "2+1=3\n", "2+1=4\n", "3+1", ""],
    priors=[1.0, 0.1 + 0.2, 0.7, 0.5, 0.5, 1.0, 0.0],
    scores=[None, 0.5, 0.25, None, 0.125, 0.5, None],
    visits=[7, 4, 3, 2, 1, 1, 1],
    values=[0.25, 0.5, 0.0, 1.0, None, 0.0, 0.0],
    stop_reasons=["step", "step", "step", "end", "end", "length", "error"],
    answers=[None, None, None, "3", "4", None, None],
    outcomes=[None, None, None, 1.0, 0.0, 0.0, 0.0],
    generated_tokens=8,
    policy_calls=3,
    scored_tokens=5,
    num_simulations=7,
    provenance=FIRST,
)
GRADED_STEP = GradedRow(
    problem_id="a",
    prompt_ids=[4, 5],
    completion_ids=[9],
    good=False,
    value=0.0,
    prompt_value=0.1 + 0.2,
    prompt=f"{QUESTION}\n1+1=2\n",
    completion="2+1=4\n",
    logps=[-0.2],
    provenance=FIRST,
)
RECORDS = {"graded": GRADED_STEP, "pairs": PAIR, "traces": TRACE, "values": PATH, "trees": TREE}
SOURCE = ExportSource(
    questions={"a": QUESTION, "ü": QUESTION},
    answers={"a": "3", "ü": "3"},
    prompt_template="Q: {question}\nA:\n",
    system="Be brief.",
    name="owner/sums",
    ability="math",
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Q: {QUESTION}\nA:\n"}]
PROMPT = f"Q: {QUESTION}\nA:\n"
PROBLEM = {
    "data_source": "owner/sums",
    "prompt": MESSAGES,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"index": "a", "question": QUESTION},
    "datasource": "owner/sums",
    "label": "3",
}


def reply(text):
    """Return a chat's answer."""
    return [{"role": "assistant", "content": text}]


def rounded(value):
    """Return nested lists and dicts with floats cut to twelve digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 12) if isinstance(value, float) else value


PAIR_COLUMNS = {
    "question": QUESTION,
    "shared_steps": "1+1=2\n",
    "prompt_token_ids": [4, 5],
    "chosen_token_ids": [6],
    "rejected_token_ids": [7, 8],
    "chosen_value": 0.9,
    "rejected_value": 0.1 + 0.2,
    "depth": 2,
    "chosen_visits": 9,
    "rejected_visits": 3,
    "chosen_logps": [-0.5],
    "rejected_logps": [-0.25, -1e-300],
    "agreement": 2 / 3,
    "uncertainty": None,
}
TRACE_COLUMNS = {"question": QUESTION, "shared_steps": "", "prompt_token_ids": [4], "completion_token_ids": [5, 6], "mean_value": 1 / 3}
SOLUTION = "1+1=2\n2+1=3\n"
TREE_ROW = {
    **{field.name: getattr(TREE, field.name) for field in fields(TREE) if field.name not in ("problem_id", "provenance", "schema_version")},
    "advantages": [None, 0.25, -0.25, 0.5, -0.5, 0.0, 0.0],
    "token_advantages": [[], [0.25], [-0.25], [0.5, 0.5], [-0.5], [0.0], []],
}
EXPECTED = {
    "preference": [{"prompt": f"{PROMPT}1+1=2\n", "chosen": "2+1=3\n", "rejected": "2+1=4\n", **PAIR_COLUMNS}],
    "preference-chat": [
        {
            "prompt": MESSAGES,
            "chosen": reply("1+1=2\n2+1=3\n"),
            "rejected": reply("1+1=2\n2+1=4\n"),
            "chosen_step": "2+1=3\n",
            "rejected_step": "2+1=4\n",
            **PAIR_COLUMNS,
        }
    ],
    "sft": [{"prompt": PROMPT, "completion": SOLUTION, **TRACE_COLUMNS}],
    "sft-chat": [{"prompt": MESSAGES, "completion": reply(SOLUTION), "solution": SOLUTION, **TRACE_COLUMNS}],
    "sft-ids": [{"input_ids": [4, 5, 6], "labels": [-100, 5, 6], "solution": SOLUTION, **TRACE_COLUMNS}],
    "kto": [
        {
            "prompt": PROMPT,
            "completion": text,
            "label": label,
            "question": QUESTION,
            "shared_steps": "",
            "prompt_token_ids": [4],
            "completion_token_ids": ids,
            "value": value,
            "prompt_value": 0.25,
            "completion_logps": logps,
        }
        # The stored values of the steps are 0.5 and 1.0; the last step of the wrong solution was never visited.
        for text, label, ids, value, logps in (
            (SOLUTION, True, [5, 7, 8], 0.75, [-0.5, -1e-300, -0.1]),
            ("1+1=2\n2+1=4\n", False, [5, 9], 0.5, [-0.5, -0.2]),
        )
    ],
    "graded": [
        {
            "prompt": f"{PROMPT}1+1=2\n",
            "completion": "2+1=4\n",
            "label": False,
            "question": QUESTION,
            "shared_steps": "1+1=2\n",
            "prompt_token_ids": [4, 5],
            "completion_token_ids": [9],
            "value": 0.0,
            "prompt_value": 0.1 + 0.2,
            "completion_logps": [-0.2],
        }
    ],
    "stepwise": [
        {
            "prompt": QUESTION,
            "completions": [step.removesuffix("\n") for step in steps],
            "labels": labels,
            "targets": targets,
            "steps": steps,
            "step_token_ids": ids,
            "prompt_token_ids": [4],
        }
        for steps, labels, targets, ids in (
            (["1+1=2\n", "2+1=3\n"], [True, True], [1.0, 1.0], [[5], [7, 8]]),
            (["1+1=2\n", "2+1=4\n"], [True, False], [None, 0.0], [[5], [9]]),
            (["1+1=3\n", "3+1"], [False, False], [0.0, 0.0], [[6], [10]]),
        )
    ],
    "math-shepherd": [
        {
            "input": f"{QUESTION} Step 1: {first} ки\nStep 2: {second} ки",
            "label": f"{QUESTION} Step 1: {first} {signs[0]}\nStep 2: {second} {signs[1]}",
            "value": signs,
        }
        for first, second, signs in (("1+1=2", "2+1=3", ["+", "+"]), ("1+1=2", "2+1=4", ["+", "-"]), ("1+1=3", "3+1", ["-", "-"]))
    ],
    "value": [
        {"state": PROMPT + text, "target": target, "visits": visits, "depth": depth, "stop_reason": reason, "state_token_ids": ids}
        for text, target, visits, depth, reason, ids in (
            ("", 0.25, 7, 0, "step", [4]),
            ("1+1=2\n", 0.5, 4, 1, "step", [4, 5]),
            ("1+1=3\n", 0.0, 3, 1, "step", [4, 6]),
            ("1+1=2\n2+1=3\n", 1.0, 2, 2, "end", [4, 5, 7, 8]),
            ("1+1=2\n2+1=4\n", 0.0, 1, 2, "end", [4, 5, 9]),
            ("1+1=3\n3+1", 0.0, 1, 2, "length", [4, 6, 10]),
        )
    ],
    "value-paths": [
        {
            "prompt": PROMPT,
            "completions": ["x\n", "y\u2028\n"],
            "labels": [None, 1 / 3],
            "question": QUESTION,
            "prompt_token_ids": [4],
            "completion_token_ids": [[5], [6, 7]],
        }
    ],
    "tree": [TREE_ROW],
    "tree-json": [TREE_ROW],
    "trajectories": [
        {
            **PROBLEM,
            "uid": "a",
            "response": text,
            "outcome": outcome,
            "stop_reason": reason,
            "prompts": [4],
            "responses": ids,
            "old_log_probs": logps,
            "advantages": advantages,
            "token_level_rewards": rewards,
            "step_ends": ends,
        }
        for text, outcome, reason, ids, logps, advantages, rewards, ends in (
            (SOLUTION, 1.0, "end", [5, 7, 8], [-0.5, -1e-300, -0.1], [0.25, 0.5, 0.5], [0.0, 0.0, 1.0], [0, 2]),
            ("1+1=2\n2+1=4\n", 0.0, "end", [5, 9], [-0.5, -0.2], [0.25, -0.5], [0.0, 0.0], [0, 1]),
            ("1+1=3\n3+1", 0.0, "length", [6, 10], [-0.25, -0.3], [-0.25, 0.0], [0.0, 0.0], [0, 1]),
        )
    ],
    "prompts": [{**PROBLEM, "share_right": 1 / 3, "num_solutions": 3}],
}
DROPPED = {
    "kto": {"did not end by itself": 1, "failed step": 1},
    "stepwise": {"failed step": 1},
    "math-shepherd": {"failed step": 1},
    "value": {"failed step": 1},
    "trajectories": {"failed step": 1},
}
IMPORTED = [name for name, chosen in EXPORT_FORMATS.items() if chosen.restore is not None]


def job(format, **settings):
    """Return what to export."""
    return ExportJob(format=format, **{"source": SOURCE, **settings})


def _finished_solutions(trees):
    """Return what the run itself makes of the solutions of some trees, without those that a limit cut, in the order of their leaves."""
    rows = [row for tree in trees for row in GradedSolutions(per_problem=9).select([tree]).rows]
    return [row for row in rows if row.completion_ids != [6, 10]]


def shards(folder, format, *groups):
    """Write groups of records as shards and return their paths."""
    paths = [folder / f"{format}-{index}.parquet" for index in range(len(groups))]
    for path, records in zip(paths, groups, strict=True):
        write_records(path, records, EXPORT_FORMATS[format].kind)
    return paths


def record_of(format):
    """Return the record that a format's shards hold here."""
    return RECORDS[EXPORT_FORMATS[format].kind.name]


@pytest.fixture
def load(tmp_path):
    """``datasets.load_dataset`` with a cache of this test's own."""
    import datasets

    return lambda directory, split="train": datasets.load_dataset(str(directory), split=split, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_rows_by_hand(tmp_path, load, format):
    """Every column of every row is what the tree says, rows keep their order and provenance, and an empty shard does no harm."""
    record = record_of(format)
    paths = shards(tmp_path, format, [record], [], [replace(record, problem_id="ü", provenance=SECOND)])
    summary = export_dataset(paths, job(format), tmp_path / "out")
    data = load(tmp_path / "out")
    once = len(EXPECTED[format])
    assert summary.num_rows == len(data) == 2 * once
    assert summary.dropped == {reason: 2 * count for reason, count in DROPPED.get(format, {}).items()}
    provenance = {field.name: getattr(FIRST, field.name) for field in fields(FIRST)}
    expected = [{"problem_id": "a", **row, **provenance} for row in EXPECTED[format]]
    if EXPORT_FORMATS[format].suffix == "jsonl":
        written = json.loads((tmp_path / "out" / "data" / "train-00000.jsonl").read_text())
        assert [{name: written[name] for name in expected[0]}] == expected
        # The library reads a JSON file's numbers to within their last bit.
        assert rounded([{name: data[0][name] for name in expected[0]}]) == rounded(expected)
    else:
        assert [{name: data[index][name] for name in expected[index]} for index in range(once)] == expected
    assert [(row["problem_id"], row["round"], row["scorer_version"]) for row in data] == [("a", 1, None)] * once + [("ü", 2, 1)] * once
    assert data.column_names == EXPORT_FORMATS[format].schema.names


@pytest.mark.parametrize("format", IMPORTED)
def test_every_field_comes_back(tmp_path, format):
    """Export and import give the records again, every field bit for bit, and shards of the same kind byte for byte."""
    record = record_of(format)
    others = [replace(record, problem_id="ü", provenance=SECOND), replace(record, problem_id="b\u2028\x00")]
    paths = shards(tmp_path, format, [record, others[0]], [others[1]])
    source = replace(SOURCE, questions={**SOURCE.questions, others[1].problem_id: QUESTION})
    export_dataset(paths, job(format, source=source), tmp_path / "out")
    kind, count = import_dataset(tmp_path / "out", tmp_path / "back")
    assert kind is restored_kind(tmp_path / "out") is EXPORT_FORMATS[format].restored
    back = [read_records(path, kind) for path in sorted((tmp_path / "back").iterdir())]
    if format == "kto":
        expected = [_finished_solutions([record, others[0]]), _finished_solutions([others[1]])]
    elif format == "stepwise":
        expected = [value_rows([record, others[0]], target="hard-max").rows, value_rows([others[1]], target="hard-max").rows]
    else:
        expected = [[record, others[0]], [others[1]]]
        assert [path.read_bytes() for path in sorted((tmp_path / "back").iterdir())] == [path.read_bytes() for path in paths]
    assert back == expected
    assert count == sum(map(len, expected))


@pytest.mark.parametrize("format", [name for name, chosen in EXPORT_FORMATS.items() if chosen.whole])
def test_no_field_is_lost(format):
    """What no column copies and no function restores is appended, so a field that records gain is exported without further ado."""
    chosen = EXPORT_FORMATS[format]
    held = Counter(column.field for column in chosen.all_columns().values() if column.field)
    assert set(chosen.kind.columns) - set(held) <= {"prompt", "schema_version"}
    assert max(held.values()) == 1
    wider = replace(
        chosen, kind=replace(chosen.kind, columns={**chosen.kind.columns, "novelty": chosen.kind.schema.field("problem_id").type})
    )
    assert wider.all_columns()["novelty"].field == "novelty"


@pytest.mark.parametrize("format", ["sft", "sft-ids"])
def test_revisions_keep_their_mistake_as_context(tmp_path, load, format):
    """The wrong steps of a revision belong to the prompt, without loss, and come back; in a chat they would be learned, so none is made."""
    revision = replace(TRACE, prompt=f"{QUESTION}\n1+1=3\n", prompt_ids=[4, 9])
    paths = shards(tmp_path, format, [TRACE, revision])
    export_dataset(paths, job(format), tmp_path / "out")
    row = load(tmp_path / "out")[1]
    assert row["shared_steps"] == "1+1=3\n"
    if format == "sft":
        assert row["prompt"] == f"{PROMPT}1+1=3\n"
    else:
        assert row["labels"] == [-100, -100, 5, 6]
    import_dataset(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "shard-0000.parquet").read_bytes() == paths[0].read_bytes()
    summary = export_dataset(paths, job("sft-chat"), tmp_path / "chat")
    assert (summary.num_rows, summary.dropped) == (1, {"revision, which needs text or token ids": 1})


@pytest.mark.parametrize("format", ["stepwise", "math-shepherd"])
def test_judged_steps_train_a_prm(tmp_path, format):
    """``prm train`` reads both forms: the question, the steps and a label for every step."""
    export_dataset(shards(tmp_path, format, [TREE]), job(format), tmp_path / "out")
    (path,) = (tmp_path / "out" / "data").iterdir()
    solutions = load_stepwise(path).solutions
    if format == "math-shepherd":
        # OpenRLHF's process reward data set puts the n-th value at the n-th marker, and wants as many.
        assert all(row["input"].count("ки") == len(row["value"]) for row in pq.read_table(path).to_pylist())
    numbered = "Step {}: " if format == "math-shepherd" else ""
    assert [(row.question, list(row.steps), list(row.labels)) for row in solutions] == [
        (
            QUESTION,
            [numbered.format(number) + step for number, step in enumerate(row["completions"], 1)],
            [float(label) for label in row["labels"]],
        )
        for row in EXPECTED["stepwise"]
    ]


def test_shepherd_rows_that_cannot_be_read_back_are_left_out(tmp_path):
    """A question or a step with a marker of the form in it would be cut in the wrong place."""
    trees = [TREE, replace(TREE, question="Step 1: what?"), replace(TREE, texts=[text.replace("=", "ки") for text in TREE.texts])]
    summary = export_dataset(shards(tmp_path, "math-shepherd", trees), job("math-shepherd"), tmp_path / "out")
    # The third solution of the third tree has no equation.
    assert summary.num_rows == 3
    assert summary.dropped == {"failed step": 3, "holds a marker of the form": 6}


def test_advantages_and_targets_can_be_chosen(tmp_path, load):
    """The form of the advantages changes the numbers and the sentence in the card; so does the value's definition."""
    export_dataset(shards(tmp_path, "tree", [TREE]), job("tree", source=replace(SOURCE, advantage=AdvantageForm.GROUP)), tmp_path / "group")
    spread = 0.5 + 1e-6
    assert load(tmp_path / "group")[0]["advantages"] == pytest.approx(
        [None, *(x / spread for x in (0.25, -0.25, 0.75, -0.25, -0.25, -0.25))]
    )
    values = replace(SOURCE, target=ValueTarget.TREE_VALUE)
    export_dataset(shards(tmp_path, "value", [TREE]), job("value", source=values), tmp_path / "values")
    assert load(tmp_path / "values")["target"] == [0.25, 0.5, 0.0, 1.0, 0.0]
    assert "Definition `tree-value`" in (tmp_path / "values" / "README.md").read_text()


def test_splits_are_by_problem(tmp_path, load):
    """A problem is in one split, the same in every format; problems with the same question stay together; the card lists the splits."""
    ids = [f"p{index}" for index in range(60)]
    questions = {name: f"{QUESTION}+{index // 2}" for index, name in enumerate(ids)}
    source = replace(SOURCE, questions=questions, answers=dict.fromkeys(ids, "3"))
    trees = [replace(TREE, problem_id=name, question=questions[name]) for name in ids]
    found = {}
    for format in ("prompts", "kto"):
        paths = shards(tmp_path, format, trees[:30], trees[30:])
        summary = export_dataset(paths, job(format, source=source, splits={"test": 0.25, "validation": 0.25}), tmp_path / format)
        loaded = {split: load(tmp_path / format, split) for split in ("train", "test", "validation")}
        assert summary.rows == {split: len(data) for split, data in loaded.items()}
        found[format] = {split: set(data["problem_id"]) for split, data in loaded.items()}
    assert found["prompts"] == found["kto"]
    assert sorted(name for names in found["kto"].values() for name in names) == sorted(ids)
    for names in found["kto"].values():
        assert {ids[ids.index(name) ^ 1] for name in names} == names
    # Thirty pairs, a quarter each: 3 to 12 of them with a chance of 99%.
    assert all(6 <= len(found["kto"][split]) <= 24 for split in ("test", "validation"))
    assert "| test | " in (tmp_path / "kto" / "README.md").read_text()


@pytest.mark.parametrize("splits", [{"train": 0.1}, {"test": 0.0}, {"test": 1.0}, {"a": 0.5, "b": 0.5}, {"a-b": 0.1}])
def test_impossible_splits_are_refused(tmp_path, splits):
    """Shares must be in (0, 1) and leave something to train on; names must be words."""
    with pytest.raises(ConfigError, match="split"):
        export_dataset(shards(tmp_path, "sft", [TRACE]), job("sft", splits=splits), tmp_path / "out")
    with pytest.raises(DataFormatError, match="every split needs a row: got none in"):
        export_dataset(shards(tmp_path, "sft", [TRACE]), job("sft", splits={"test": 0.001}), tmp_path / "out")


def test_exploration_by_hand(tmp_path):
    """Branching, depths, ends and waste of the tree above, counted by hand, and nothing of an empty one."""
    exploration = Exploration()
    for path in shards(tmp_path, "tree", [TREE, replace(TREE, outcomes=[None] * 7)], []):
        exploration.add(OpenShard.read(path, EXPORT_FORMATS["tree"].kind))
    assert exploration.table() == {
        "searched trees": "2",
        "trees with a right solution": "50.0% (1 of 2)",
        "nodes per tree": "7",
        "children per expanded node": "2",
        "depth of leaves, mean": "2",
        "depth of leaves, largest": "2",
        "leaves that ended by themselves": "50.0% (4 of 8)",
        "leaves that a limit cut": "25.0% (2 of 8)",
        "leaves at which the policy failed": "25.0% (2 of 8)",
        "leaves that were not expanded": "0.0% (0 of 8)",
        "graded leaves that are right": "25.0% (1 of 4)",
        "different answers per tree": "2",
        "sampled tokens that no node holds (duplicates, rollouts)": "25.0% (4 of 16)",
    }
    assert set(Exploration().table().values()) == {"0", "none"}
    bare = Exploration()
    (path,) = shards(tmp_path, "tree", [replace(TREE, outcomes=[None] * 7, answers=[None] * 7)])
    bare.add(OpenShard.read(path, EXPORT_FORMATS["tree"].kind))
    assert (bare.distinct_answers, bare.graded, bare.solved) == (0, 0, 0)


def test_data_card_says_what_is_inside(tmp_path):
    """Front matter for the hub; counts, columns, provenance, settings, reasons, exploration, quality and licence in the text."""
    from huggingface_hub import metadata_load

    pairs = shards(tmp_path, "preference", [PAIR, replace(PAIR, provenance=SECOND, problem_id="ü", chosen_value=0.5)])
    facts = CardFacts(
        settings={"search": "`mcts`"},
        selected={"kept": 2, "dropped_by_reason": {"below margin": 7}},
        licence="mit",
        problems="owner/sums",
    )
    export_dataset(pairs, job("preference", trees=shards(tmp_path, "tree", [TREE]), facts=facts), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    facts_read = metadata_load(tmp_path / "out" / "README.md")
    assert (facts_read["license"], facts_read["size_categories"], facts_read["tags"]) == ("mit", ["n<1K"], ["stepladder", "preference"])
    assert facts_read["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    machine = facts_read["stepladder"]
    assert (machine["rows"], machine["round"], machine["scorer_version"]) == ({"train": 2}, [1, 2], [1, None])
    assert machine["dropped_by_reason"] == {"below margin": 7}
    for column in EXPORT_FORMATS["preference"].schema.names:
        assert f"| `{column}` | " in card
    for line in (
        "2 rows from 2 problems",
        "| `round` | `1`, `2` |",
        f"| `config_hash` | `{'c' * 16}` |",
        f"| `seed` | `{2**62}` |",
        "| search | `mcts` |",
        "| kept by the run's labelling (pairs) | 2 |",
        "| dropped by the run's labelling: below margin | 7 |",
        "| children per expanded node | 2 |",
        # Margins 0.6 and 0.2.
        "| margin | 0.4 | 0.2 | 0.4 | 0.6 |",
        "Licence of the source problems (owner/sums): `mit`.",
    ):
        assert line in card
    export_dataset(pairs, job("preference"), tmp_path / "bare")
    assert "was not stated" in (tmp_path / "bare" / "README.md").read_text()


def test_export_is_deterministic(tmp_path):
    """The same shards give the same files, byte for byte."""
    for format in ("preference", "tree-json"):
        for out in ("one", "two"):
            export_dataset(shards(tmp_path, format, [record_of(format)]), job(format), tmp_path / format / out)
        one, two = (
            {path.relative_to(tmp_path / format / out): path.read_bytes() for path in (tmp_path / format / out).rglob("*.*")}
            for out in ("one", "two")
        )
        assert one == two
        assert len(one) == 2


def test_export_never_removes_what_it_did_not_make(tmp_path):
    """An occupied directory is refused; with overwrite an earlier export is replaced, and nothing else ever is."""
    paths, out = shards(tmp_path, "preference", [PAIR]), tmp_path / "out"
    out.mkdir()
    export_dataset(paths, job("preference"), out)
    with pytest.raises(CheckpointError, match="it holds an earlier export -- choose another directory or pass --overwrite"):
        export_dataset(paths, job("preference"), out)
    write_pairs(paths[0], [PAIR, PAIR])
    assert export_dataset(paths, job("preference", overwrite=True), out).num_rows == 2
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "README.md").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="files that are no export of stepladder"):
            export_dataset(paths, job("preference", overwrite=overwrite), precious)
    with pytest.raises(CheckpointError, match="it is a file"):
        export_dataset(paths, job("preference", overwrite=True), precious / "README.md")
    assert (precious / "README.md").read_text() == "mine"


def test_failed_export_leaves_nothing_half_written(tmp_path):
    """A bad shard among good ones leaves neither a directory nor temporaries; what cannot be exported is named."""
    write_pairs(tmp_path / "s0", [PAIR])
    write_trees(tmp_path / "s1", [])
    with pytest.raises(DataFormatError, match="s1: must be a shard of pairs"):
        export_dataset([tmp_path / "s0", tmp_path / "s1"], job("preference"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s0", "s1"]
    with pytest.raises(DataFormatError, match="needs at least one row: the 1 shards hold none"):
        export_dataset([tmp_path / "s1"], job("tree"), tmp_path / "out")
    with pytest.raises(DataFormatError, match="needs at least one shard"):
        export_dataset([], job("preference"), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"must be one of preference, .*: got 'csv'"):
        find_format("csv")
    with pytest.raises(DataFormatError, match="problem 'a': its question must be in the trees"):
        export_dataset([tmp_path / "s0"], job("preference", source=ExportSource(questions={})), tmp_path / "out")
    with pytest.raises(DataFormatError, match="row of 'a': prompt must begin with its question 'other'"):
        export_dataset([tmp_path / "s0"], job("preference", source=ExportSource(questions={"a": "other"})), tmp_path / "out")
    write_trees(tmp_path / "s1", [TREE])
    with pytest.raises(DataFormatError, match="problem 'a': its reference answer must be in the run's training problems"):
        export_dataset([tmp_path / "s1"], job("prompts", source=ExportSource(questions={})), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_imported_is_refused(tmp_path):
    """No export, another version, a format without a way back, missing files, missing columns, an occupied place: one sentence each."""
    (tmp_path / "foreign").mkdir()
    with pytest.raises(DataFormatError, match=r"foreign/README\.md: must be the card of a data set .* wrote: there is no such file"):
        import_dataset(tmp_path / "foreign", tmp_path / "back")
    export_dataset(shards(tmp_path, "value", [TREE]), job("value"), tmp_path / "value")
    with pytest.raises(DataFormatError, match=r"must be of a format that can be imported .*: got 'value' -- export the run's trees"):
        import_dataset(tmp_path / "value", tmp_path / "back")
    out = tmp_path / "out"
    export_dataset(shards(tmp_path, "tree-json", [TREE]), job("tree-json"), out)
    card, data = (out / "README.md").read_text(), out / "data" / "train-00000.jsonl"
    (out / "README.md").write_text(card.replace("version: 1", "version: 2"))
    with pytest.raises(DataFormatError, match="got 'tree-json' of version 2 -- use the stepladder that wrote it"):
        import_dataset(out, tmp_path / "back")
    for broken in ("---\n: [\n---\n", "---\n- a\n---\n", card.replace("data_files:", "files:")):
        (out / "README.md").write_text(broken)
        with pytest.raises(DataFormatError, match=r"out/README\.md: must be the card of a data set that stepladder export wrote"):
            import_dataset(out, tmp_path / "back")
    nest = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in pairwise("abcdefgh"))
    for place in ("/etc/*", "../*", "''", ".", "null", "*h"):
        hostile = re.sub("path: .*", f"path: {place}", card).replace("---\n", f"---\na: &a x\n{nest}", 1)
        (out / "README.md").write_text(hostile)
        with pytest.raises(DataFormatError, match=r"README\.md: must name files of the data set itself: got .{1,80} -- fetch it again"):
            import_dataset(out, tmp_path / "back")
    (out / "README.md").write_text(card.replace("---\n", f"---\na: &a x\n{nest}", 1).replace("version: 1", "version: *h"))
    with pytest.raises(DataFormatError, match=r"got 'tree-json' of version .{1,80} -- use"):
        import_dataset(out, tmp_path / "back")
    (out / "README.md").write_text(card)
    row = json.loads(data.read_text())
    data.write_text(json.dumps(row | {"parents": "abc"}))
    with pytest.raises(DataFormatError, match=r"jsonl: must hold values of the columns' types: .*'a'"):
        import_dataset(out, tmp_path / "back")
    data.write_text(json.dumps({name: value for name, value in row.items() if name != "logps"}))
    with pytest.raises(DataFormatError, match="jsonl:1: must have the columns of the format: logps missing"):
        import_dataset(out, tmp_path / "back")
    data.write_text("{")
    with pytest.raises(DataFormatError, match="must be a jsonl file"):
        import_dataset(out, tmp_path / "back")
    data.unlink()
    with pytest.raises(DataFormatError, match=r"must hold the files that its README\.md names: found none"):
        import_dataset(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    export_dataset(shards(tmp_path, "sft", [TRACE]), job("sft"), tmp_path / "sft")
    with pytest.raises(CheckpointError, match="sft: must be new or empty"):
        import_dataset(tmp_path / "sft", tmp_path / "sft")
    with pytest.raises(CheckpointError, match=r"README\.md: must be new or empty"):
        import_dataset(tmp_path / "sft", tmp_path / "sft" / "README.md")


def test_kinds_of_shards_are_those_of_the_run():
    """Every kind of row that a run writes can be exported, and what is imported is one of them."""
    assert {id(chosen.kind) for chosen in EXPORT_FORMATS.values()} == {id(kind) for kind in (PAIRS, TRACES, GRADED, VALUES, TREES)}
    assert all(EXPORT_FORMATS[name].restored is EXPORT_FORMATS[name].kind for name in IMPORTED if EXPORT_FORMATS[name].whole)
