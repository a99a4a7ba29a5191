"""Data sets made of shards: a directory that ``datasets.load_dataset`` reads, with a data card.

A format is a table of columns. To add one, add an ``ExportFormat`` to ``EXPORT_FORMATS``: the kind of shard it is made of, its columns as
functions of the shard's table, and what the card says about each. Text columns carry the names that TRL trains on. Token ids stand beside
them under names that TRL leaves alone: its DPOTrainer writes ``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stepladder.data.labels import join_prompt
from stepladder.data.store import PAIRS, PROVENANCE_COLUMNS, TRACES, TREES, VALUES, ShardKind, read_table, write_table
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_directory

_MARK = "<!-- made by stepladder export -->"
"""Stands in every data card; only a directory with it is ever replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportColumn:
    """One column of an exported data set."""

    source: str
    """Column of the shard that it is made of."""
    meaning: str
    """What the data card says."""
    change: Callable[[pa.ChunkedArray], pa.ChunkedArray | pa.Array] = lambda values: values
    """From the shard's values to the exported ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFormat:
    """One kind of data set."""

    kind: ShardKind[Any]
    """Shards that it is made of."""
    title: str
    """Heading of the data card."""
    about: str
    """How the rows were made and how to train on them."""
    columns: dict[str, ExportColumn]
    """Columns by name, in order; problem id and provenance are added to all formats."""


def export_dataset(paths: Sequence[Path], *, format: str, out_dir: Path, overwrite: bool = False) -> int:
    """Write shards as a data set directory, whole or not at all, and return its number of rows.

    The directory holds ``data/train-*.parquet``, one file per shard that holds rows, and ``README.md``, the data card. Equal shards
    give equal bytes.

    Args:
        paths: Shards of the kind that the format is made of, in order.
        format: A name in ``EXPORT_FORMATS``.
        out_dir: New or empty directory.
        overwrite: Replace an earlier export in ``out_dir``; anything else is never removed.

    Raises:
        ConfigError: If the format is unknown.
        DataFormatError: If there is no row to export, or a file is no shard of the right kind and version.
        CheckpointError: If ``out_dir`` holds something, or cannot be written.
    """
    if format not in EXPORT_FORMATS:
        raise ConfigError(f"format: must be one of {', '.join(EXPORT_FORMATS)}: got {format!r} -- choose one of these")
    if not paths:
        raise DataFormatError(f"{out_dir}: an export needs at least one shard: got none -- run a round first")
    _check_free(out_dir, overwrite=overwrite)
    chosen, summary = EXPORT_FORMATS[format], _Summary()
    with atomic_directory(out_dir) as temporary:
        (temporary / "data").mkdir()
        for index, path in enumerate(paths):
            shard = read_table(path, chosen.kind)
            # The data set library refuses a Parquet file without rows, even beside others.
            if shard.num_rows:
                write_table(temporary / "data" / f"train-{index:05d}.parquet", _exported(shard, chosen))
                summary.add(shard)
        if not summary.num_rows:
            raise DataFormatError(f"{out_dir}: an export needs at least one row: the {len(paths)} shards hold none -- export other rounds")
        (temporary / "README.md").write_text(_data_card(format, chosen, summary), encoding="utf-8")
    return summary.num_rows


def _check_free(out_dir: Path, *, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise CheckpointError(f"{out_dir}: must be a directory or not exist: it is a file -- choose another place")
    card = out_dir / "README.md"
    ours = card.is_file() and _MARK in card.read_text(encoding="utf-8", errors="replace")
    if not any(out_dir.iterdir()) or (overwrite and ours):
        return
    remedy = "choose another directory" if not ours else "choose another directory or pass --overwrite"
    what = "an earlier export" if ours else "files that are no export of stepladder"
    raise CheckpointError(f"{out_dir}: must be new or empty: it holds {what} -- {remedy}")


def _exported(shard: pa.Table, chosen: ExportFormat) -> pa.Table:
    columns = {name: column.change(shard[column.source]) for name, column in chosen.columns.items()}
    return pa.table({"problem_id": shard["problem_id"], **columns, **{name: shard[name] for name in PROVENANCE_COLUMNS}})


class _Summary:
    """What the data card says about the rows, gathered shard by shard."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.problems: set[str] = set()
        self.provenance: dict[str, set[Any]] = {name: set() for name in PROVENANCE_COLUMNS}

    def add(self, shard: pa.Table) -> None:
        """Count the rows of one shard."""
        self.num_rows += shard.num_rows
        self.problems.update(shard["problem_id"].to_pylist())
        for name, values in self.provenance.items():
            values.update(shard[name].unique().to_pylist())


def _data_card(name: str, chosen: ExportFormat, summary: _Summary) -> str:
    provenance = {
        column: ", ".join(f"`{value}`" for value in sorted(values, key=lambda value: (value is None, value))) or "none"
        for column, values in summary.provenance.items()
    }
    meanings = {column: spec.meaning for column, spec in chosen.columns.items()}
    meanings = {"problem_id": "Key of the problem.", **meanings, **PROVENANCE_COLUMNS}
    lines = [
        "---",
        f"pretty_name: {chosen.title}",
        "tags:",
        "- stepladder",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "---",
        _MARK,
        "",
        f"# {chosen.title}",
        "",
        chosen.about,
        "",
        f"Format `{name}` of `stepladder export`: {summary.num_rows} rows from {len(summary.problems)} problems.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset("path/to/this/directory", split="train")',
        "```",
        "",
        "## Columns",
        "",
        "| column | meaning |",
        "|---|---|",
        *(f"| `{column}` | {meaning} |" for column, meaning in meanings.items()),
        "",
        "## Provenance",
        "",
        "| what | values in this data set |",
        "|---|---|",
        *(f"| `{column}` | {values} |" for column, values in provenance.items()),
        "",
    ]
    return "\n".join(lines)


def _as_prompt(questions: pa.ChunkedArray) -> pa.Array:
    return pa.array([join_prompt(question, []) for question in questions.to_pylist()], type=pa.string())


_PROMPT_IDS = "Token ids of the rendered prompt and the shared steps: exactly what the policy saw."
_QUESTION_PROMPT = ExportColumn(source="prompt", meaning="The question and a line break.", change=_as_prompt)

EXPORT_FORMATS: dict[str, ExportFormat] = {
    "preference": ExportFormat(
        kind=PAIRS,
        title="Step-level preference pairs",
        about=(
            "Each row holds two sibling steps of a search tree after the same prefix. Below the chosen step a right final answer was "
            "found, below the rejected one a wrong one, and the chosen step's value is higher by a margin.\n\n"
            "TRL's `DPOTrainer` trains on the text columns as they stand. It ends every completion with the end-of-sequence token, which "
            "these steps do not have unless they are last steps; a trainer that takes token ids avoids that."
        ),
        columns={
            "prompt": ExportColumn(source="prompt", meaning="The question, a line break, and the steps that both share."),
            "chosen": ExportColumn(source="chosen", meaning="The preferred step."),
            "rejected": ExportColumn(source="rejected", meaning="The other step."),
            "prompt_token_ids": ExportColumn(source="prompt_ids", meaning=_PROMPT_IDS),
            "chosen_token_ids": ExportColumn(source="chosen_ids", meaning="Token ids of the preferred step, as sampled."),
            "rejected_token_ids": ExportColumn(source="rejected_ids", meaning="Token ids of the other step, as sampled."),
            "chosen_value": ExportColumn(source="chosen_value", meaning="Value of the preferred step, in [0, 1]."),
            "rejected_value": ExportColumn(source="rejected_value", meaning="Value of the other step, in [0, 1]."),
            "depth": ExportColumn(source="depth", meaning="Depth of the two steps; 1 follows the question."),
            "chosen_visits": ExportColumn(source="chosen_visits", meaning="Simulations that passed through the preferred step."),
            "rejected_visits": ExportColumn(source="rejected_visits", meaning="Simulations that passed through the other step."),
        },
    ),
    "value": ExportFormat(
        kind=VALUES,
        title="Value targets of reasoning steps",
        about=(
            "Each row is a path through a search tree with a value target in [0, 1] at the end of its steps. A step that several paths "
            "share has its target in one of them only and null in the others, so that every step counts once: null is context, not zero."
        ),
        columns={
            "prompt": _QUESTION_PROMPT,
            "completions": ExportColumn(source="steps", meaning="The steps, in order."),
            "labels": ExportColumn(source="targets", meaning="Value target of each step, in [0, 1]; null where the step is context only."),
            "prompt_token_ids": ExportColumn(source="prompt_ids", meaning="Token ids of the rendered prompt."),
            "completion_token_ids": ExportColumn(source="step_ids", meaning="Token ids of each step, as sampled."),
        },
    ),
    "sft": ExportFormat(
        kind=TRACES,
        title="Solutions with right final answers",
        about=(
            "Each row is a solution found by search whose final answer was graded right: the best ones of each problem by the mean "
            "value of their steps, then by the smallest. A right final answer does not prove that every step is right."
        ),
        columns={
            "prompt": _QUESTION_PROMPT,
            "completion": ExportColumn(source="completion", meaning="The whole solution."),
            "prompt_token_ids": ExportColumn(source="prompt_ids", meaning="Token ids of the rendered prompt."),
            "completion_token_ids": ExportColumn(source="completion_ids", meaning="Token ids of the solution, as sampled."),
            "mean_value": ExportColumn(source="mean_value", meaning="Mean value of its steps, in [0, 1]."),
        },
    ),
    "tree": ExportFormat(
        kind=TREES,
        title="Search trees",
        about=(
            "Each row is the search tree of one problem, flat: node i is entry i of every list, the root is node 0, and parents come "
            "before their children. `prompt_ids` and the `token_ids` along a path are exactly what the models saw."
        ),
        columns={
            name: ExportColumn(source=name, meaning=meaning)
            for name, meaning in {
                "question": "The question.",
                "prompt_ids": "Token ids of the rendered prompt.",
                "method": "Search method.",
                "parents": "Parent of each node; -1 for the root.",
                "depths": "Steps from the root.",
                "token_ids": "Token ids of the step that leads into each node; none for the root.",
                "logps": "Log-probability of each of these tokens under the policy at temperature 1, in nats.",
                "texts": "The step as text.",
                "priors": "Prior probability of the node among its siblings.",
                "scores": "Score of the step by the process reward model, in [0, 1]; null if not scored.",
                "visits": "Simulations that passed through the node.",
                "values": "Mean backed-up return; null while unvisited.",
                "stop_reasons": "Why the step ended.",
                "answers": "Final answer of a terminal; null elsewhere.",
                "outcomes": "1 right, 0 wrong, null where not graded.",
                "generated_tokens": "Tokens sampled for the whole tree.",
                "policy_calls": "Expansion requests.",
                "scored_tokens": "Tokens sent to the process reward model.",
                "num_simulations": "Simulations done.",
            }.items()
        },
    ),
}
