"""The export formats: the source of each, and its columns.

A format is a table of columns over one kind of shard. To add one, write its row function in ``rows.py`` and add an ``ExportFormat`` to
``EXPORT_FORMATS``. Record fields without a column are appended under their own names, so a format for whole records loses nothing. Text
columns have the names that TRL trains on. Token ids have separate columns ``*_token_ids``, which no trainer overwrites.

Source: columns of other trainers as read by TRL 1.16 (``trl/trainer/{dpo,sft,kto}_trainer.py``, ``_prepare_dataset``; its stepwise type
before 1.14), verl (``verl/utils/dataset/rl_dataset.py``, ``RLHFDataset``, and ``verl/utils/dataset/README.md``), OpenRLHF
(``openrlhf/datasets/prompts_dataset.py`` and ``process_reward_dataset.py``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stepladder.data.exports.rows import (
    Row,
    RowMaker,
    pair_chats,
    problem_rows,
    prompted_rows,
    restore_path,
    restore_prompted,
    restore_solution,
    restore_stepwise,
    restore_trace,
    restore_tree,
    shepherd_rows,
    solution_rows,
    state_rows,
    stepwise_rows,
    trace_chats,
    trace_ids,
    trajectory_rows,
    tree_rows,
    value_path_rows,
)
from stepladder.data.exports.shards import inner_sizes, python_values
from stepladder.data.store import GRADED, PAIRS, PROVENANCE_TYPES, TRACES, TREES, VALUES, ShardKind, whole
from stepladder.types import Provenance

Measure = Callable[[pa.Table], Sequence[float | None]]
"""Returns a figure of every row."""

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_IDS, _NUMBERS, _TEXTS = pa.list_(_INT), pa.list_(_FLOAT), pa.list_(_TEXT)
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_REWARD_MODEL = pa.struct([("style", _TEXT), ("ground_truth", _TEXT)])


_LATER = {*TREES.later, *TRACES.later, *PAIRS.later, *GRADED.later, "observations", "observation_token_ids", "assistant_masks"}
"""Columns, or fields that a column copies, which earlier releases did not write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportColumn:
    """One column of an exported data set."""

    type: pa.DataType
    """Its Arrow type."""
    meaning: str
    """What the data card says."""
    field: str | None = None
    """The record field that the column copies; None if the format's function computes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFormat:
    """One kind of data set."""

    kind: ShardKind[Any]
    """Kind of shard that the format reads."""
    title: str
    """Heading of the data card."""
    about: str
    """How the rows are made and how to train on them."""
    columns: dict[str, ExportColumn]
    """Columns by name, in order. Every format also gets the problem id, the remaining fields of the record, and its provenance."""
    rows: RowMaker
    """Makes the rows."""
    restore: Callable[[Row], Row] | None = None
    """Maps a row to the fields of a ``restored`` record that are not copies; None if the rows do not hold a whole record."""
    restored: ShardKind[Any] | None = None
    """Kind of shard that an import writes."""
    suffix: str = "parquet"
    """``parquet`` or ``jsonl``."""
    whole: bool = True
    """Whether a row represents a whole record, so that all its fields are kept."""
    measures: dict[str, Measure]
    """Figures of the rows that the data card summarises, by name. Names that end with "tokens" are token counts."""
    per_problem: bool = False
    """Whether a row represents a problem, so that only one round is exported."""

    @property
    def needs_answers(self) -> bool:
        """Whether the rows contain reference answers."""
        return "reward_model" in self.columns

    @property
    def needs_questions(self) -> bool:
        """Whether the rows contain questions that the shards of their kind do not have."""
        return self.kind not in (TREES, VALUES)

    def all_columns(self) -> dict[str, ExportColumn]:
        """Return the format's own columns and those of all formats."""
        held = {column.field for column in self.columns.values()} | {"problem_id", *_made(self)}
        further = [name for name in self.kind.columns if name not in held] if self.whole else []
        extra = {name: ExportColumn(type=self.kind.columns[name], meaning="As in the run's rows.", field=name) for name in further}
        return {"problem_id": ExportColumn(type=_TEXT, meaning="Key of the problem.", field="problem_id"), **self.columns, **extra}

    @property
    def later_columns(self) -> list[str]:
        """Columns of lists that the files of earlier releases lack; they are empty there."""
        return [name for name, column in self.all_columns().items() if name in _LATER or column.field in _LATER]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the files."""
        return pa.schema({name: column.type for name, column in self.all_columns().items()} | PROVENANCE_TYPES)


def _made(format: ExportFormat) -> tuple[str, ...]:
    """Fields of the record that ``restore`` computes instead of copying."""
    return ("schema_version",) if format.kind is TREES else ("prompt",)


def _column(type: pa.DataType, meaning: str, field: str | None = None) -> ExportColumn:
    return ExportColumn(type=type, meaning=meaning, field=field)


def _value(name: str) -> Measure:
    return lambda rows: rows[name].to_pylist()


def _size(name: str) -> Measure:
    return lambda rows: whole(rows[name]).value_lengths().to_pylist()


def _inner_size(name: str) -> Measure:
    return lambda rows: inner_sizes(whole(rows[name])).tolist()


def _each(name: str, measure: Callable[[Any], float | None]) -> Measure:
    return lambda rows: [measure(value) for value in python_values(whole(rows[name]))]


def _margin(rows: pa.Table) -> list[float]:
    pairs = zip(rows["chosen_value"].to_pylist(), rows["rejected_value"].to_pylist(), strict=True)
    return [chosen - rejected for chosen, rejected in pairs]


def _mean_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _largest(values: Sequence[float | None]) -> float | None:
    return max((abs(value) for value in values if value is not None), default=None)


_LOGPS_MEANING = "Log-probability of each of its tokens under the policy at temperature 1, in nats."
_PROMPT_TEXT = "The prompt as text: the run's template with the question"
_QUESTION = _column(_TEXT, "The question, verbatim.")
_PROMPT_TOKENS = _column(_IDS, "Token ids of the rendered prompt.", "prompt_ids")
_MISTAKE = _column(_TEXT, "The wrong steps before a revision, as text; empty for a solution from the beginning.")
_GIVEN = "Whether each of these tokens was given instead of sampled (an observation of a tool) and carries no loss; empty if none was."
_MARKS = pa.list_(_BOOL)
_STEP_COLUMNS = {
    "steps": _column(_TEXTS, "The steps, as decoded: with the observations they concatenate to the solution."),
    "step_token_ids": _column(pa.list_(_IDS), "Token ids of each step, as sampled."),
    "observations": _column(_TEXTS, "The observation after each step, as text; empty without any."),
    "observation_token_ids": _column(pa.list_(_IDS), "Its token ids, which the policy did not sample; empty without any."),
    "prompt_token_ids": _PROMPT_TOKENS,
}
_TRACE_COLUMNS = {
    "prompt_token_ids": _PROMPT_TOKENS,
    "completion_token_ids": _column(_IDS, "Token ids of the solution, as sampled.", "completion_ids"),
    "completion_given": _column(_MARKS, _GIVEN, "completion_given"),
    "mean_value": _column(_FLOAT, "Mean value of its steps, in [0, 1].", "mean_value"),
}
_PAIR_COLUMNS = {
    "question": _QUESTION,
    "shared_steps": _column(_TEXT, "The steps that both continue, as text; empty directly after the question."),
    "prompt_token_ids": _column(_IDS, "Token ids of the rendered prompt and the shared steps, as the policy saw them.", "prompt_ids"),
    "chosen_token_ids": _column(_IDS, "Token ids of the preferred step, as sampled.", "chosen_ids"),
    "rejected_token_ids": _column(_IDS, "Token ids of the other step, as sampled.", "rejected_ids"),
    "chosen_given": _column(_MARKS, _GIVEN, "chosen_given"),
    "rejected_given": _column(_MARKS, "The same for the other step.", "rejected_given"),
    "chosen_value": _column(_FLOAT, "Value of the preferred step, in [0, 1].", "chosen_value"),
    "rejected_value": _column(_FLOAT, "Value of the other step, in [0, 1].", "rejected_value"),
    "depth": _column(_INT, "Depth of the two steps; 1 is directly after the question.", "depth"),
    "chosen_visits": _column(_INT, "Simulations that passed through the preferred step.", "chosen_visits"),
    "rejected_visits": _column(_INT, "Simulations that passed through the other step.", "rejected_visits"),
    "chosen_logps": _column(_NUMBERS, "Log-probability of each token of the preferred step when it was sampled, in nats.", "chosen_logps"),
    "rejected_logps": _column(_NUMBERS, "The same for the other step.", "rejected_logps"),
    "agreement": _column(_FLOAT, "Share of sibling pairs that two PRMs rank alike; null if unknown.", "agreement"),
    "uncertainty": _column(_FLOAT, "Uncertainty of the order of the two, given the leaves, in bits; null if unknown.", "uncertainty"),
}
_PAIRS_ABOUT = (
    "Each row holds two continuations of the same prefix from search trees: two steps, or two whole solutions. The chosen one has the "
    "higher value. Under the default rule, the search found a right final answer below it and a wrong one below the other."
)
_TRACES_ABOUT = (
    "Each row is a solution found by search with a right final answer. The export has the best solutions of each problem, by the value of "
    "their steps. A right final answer does not prove that every step is right."
)
_JUDGED_ABOUT = (
    "Each row is a path through a search tree. A step is good if a right final answer was found at or below it, and bad if only wrong ones "
    "were (Math-Shepherd's hard estimation). If several paths share a step, each of them contains it."
)
_PROBLEM_COLUMNS = {
    "data_source": _column(_TEXT, "Source of the problem; verl chooses the reward function by it. `--data-source` sets it."),
    "prompt": _column(_MESSAGES, "The prompt as messages."),
    "ability": _column(_TEXT, "Kind of problem."),
    "reward_model": _column(_REWARD_MODEL, "How verl grades: `style` is `rule`, and `ground_truth` is the reference answer."),
    "extra_info": _column(
        pa.struct([("index", _TEXT), ("question", _TEXT)]), "`index` is the problem's id, `question` the question, verbatim."
    ),
    "datasource": _column(_TEXT, "The same as `data_source`, under OpenRLHF's name."),
    "label": _column(_TEXT, "The reference answer, for OpenRLHF's `--label_key label`."),
}
_TREE_COLUMNS = {
    "question": _column(_TEXT, "The question.", "question"),
    "prompt_ids": _column(_IDS, "Token ids of the rendered prompt.", "prompt_ids"),
    "method": _column(_TEXT, "Search method.", "method"),
    "parents": _column(_IDS, "Parent of each node; -1 for the root.", "parents"),
    "depths": _column(_IDS, "Steps from the root.", "depths"),
    "token_ids": _column(pa.list_(_IDS), "Token ids of the step that leads into each node; none for the root.", "token_ids"),
    "logps": _column(pa.list_(_NUMBERS), "Log-probability of each of these tokens under the policy at temperature 1, in nats.", "logps"),
    "texts": _column(_TEXTS, "The step as text.", "texts"),
    "given_ids": _column(pa.list_(_IDS), "Token ids after each step that the policy did not sample; empty without any.", "given_ids"),
    "given_texts": _column(_TEXTS, "The same as text: the observations of a tool.", "given_texts"),
    "actions": _column(_TEXTS, "Kind of the step, where the search has several; empty without.", "actions"),
    "priors": _column(_NUMBERS, "Prior probability of the node among its siblings.", "priors"),
    "scores": _column(_NUMBERS, "Score of the step by the process reward model, in [0, 1]; null if not scored.", "scores"),
    "visits": _column(_IDS, "Simulations that passed through the node.", "visits"),
    "values": _column(_NUMBERS, "Mean backed-up return; null while unvisited.", "values"),
    "qvalues": _column(_NUMBERS, "Reward of the step plus the discounted value; empty without rewards and discount.", "qvalues"),
    "stop_reasons": _column(_TEXTS, "Why the step ended.", "stop_reasons"),
    "answers": _column(_TEXTS, "Final answer of a terminal; null elsewhere.", "answers"),
    "outcomes": _column(_NUMBERS, "1 right, less wrong (with partial credit above 0), null if not graded.", "outcomes"),
    "advantages": _column(_NUMBERS, "Advantage of the step into each node; null for the root and for steps without graded leaves."),
    "token_advantages": _column(pa.list_(_NUMBERS), "The same for every token of the step."),
    "generated_tokens": _column(_INT, "Tokens sampled for the whole tree.", "generated_tokens"),
    "policy_calls": _column(_INT, "Requests to the policy.", "policy_calls"),
    "scored_tokens": _column(_INT, "Tokens sent to the process reward model.", "scored_tokens"),
    "num_simulations": _column(_INT, "Simulations done.", "num_simulations"),
}
_TREES_ABOUT = (
    "Each row is the search tree of one problem in flat form: node i is entry i of every list, the root is node 0, and parents come before "
    "their children. The models saw exactly `prompt_ids` and the `token_ids` along a path. Every step has an advantage."
)

_PAIR_MEASURES: dict[str, Measure] = {
    "margin": _margin,
    "depth": _value("depth"),
    "prompt tokens": _size("prompt_token_ids"),
    "chosen tokens": _size("chosen_token_ids"),
    "rejected tokens": _size("rejected_token_ids"),
}
_TRACE_MEASURES: dict[str, Measure] = {
    "mean value": _value("mean_value"),
    "prompt tokens": _size("prompt_token_ids"),
    "solution tokens": _size("completion_token_ids"),
}
_GRADED_MEASURES: dict[str, Measure] = {
    "share good": _each("label", float),
    "value": _value("value"),
    "completion tokens": _size("completion_token_ids"),
}
_TREE_MEASURES: dict[str, Measure] = {
    "nodes": _size("parents"),
    "simulations": _value("num_simulations"),
    "largest advantage": _each("advantages", _largest),
    "step tokens": _inner_size("token_ids"),
}

EXPORT_FORMATS: dict[str, ExportFormat] = {
    "preference": ExportFormat(
        kind=PAIRS,
        title="Step-level preference pairs",
        about=(
            f"{_PAIRS_ABOUT}\n\nTRL's `DPOTrainer` trains on the text columns without changes. It ends every completion with the "
            "end-of-sequence token, which only last steps really have. Train on the token ids to avoid that."
        ),
        columns={
            "prompt": _column(_TEXT, f"{_PROMPT_TEXT}, and the steps that both continue."),
            "chosen": _column(_TEXT, "The preferred step.", "chosen"),
            "rejected": _column(_TEXT, "The other step.", "rejected"),
            **_PAIR_COLUMNS,
        },
        measures=_PAIR_MEASURES,
        rows=prompted_rows,
        restore=restore_prompted,
        restored=PAIRS,
    ),
    "preference-chat": ExportFormat(
        kind=PAIRS,
        title="Step-level preference pairs as chats",
        about=(
            f"{_PAIRS_ABOUT}\n\nTRL's `DPOTrainer` trains on the chats without changes. Both replies begin with the shared steps. Their "
            "part of the log-probability is the same in both, so it cancels in the difference, on which the DPO losses depend."
        ),
        columns={
            "prompt": _column(_MESSAGES, "The prompt as messages."),
            "chosen": _column(_MESSAGES, "The reply: shared steps, then the preferred one."),
            "rejected": _column(_MESSAGES, "The reply: shared steps, then the other one."),
            "chosen_step": _column(_TEXT, "The preferred step.", "chosen"),
            "rejected_step": _column(_TEXT, "The other step.", "rejected"),
            **_PAIR_COLUMNS,
        },
        measures=_PAIR_MEASURES,
        rows=pair_chats,
        restore=restore_prompted,
        restored=PAIRS,
    ),
    "sft": ExportFormat(
        kind=TRACES,
        title="Solutions with right final answers",
        about=f"{_TRACES_ABOUT}\n\nTRL's `SFTTrainer` trains on the text columns without changes, with the loss on the completions.",
        columns={
            "prompt": _column(_TEXT, f"{_PROMPT_TEXT}."),
            "completion": _column(_TEXT, "The whole solution.", "completion"),
            "question": _QUESTION,
            "shared_steps": _MISTAKE,
            **_TRACE_COLUMNS,
        },
        measures=_TRACE_MEASURES,
        rows=prompted_rows,
        restore=restore_trace,
        restored=TRACES,
    ),
    "sft-chat": ExportFormat(
        kind=TRACES,
        title="Solutions with right final answers as chats",
        about=f"{_TRACES_ABOUT}\n\nTRL's `SFTTrainer` trains on the chats without changes, with the loss on the replies.",
        columns={
            "prompt": _column(_MESSAGES, "The prompt as messages."),
            "completion": _column(_MESSAGES, "The reply: the whole solution."),
            "solution": _column(_TEXT, "The whole solution.", "completion"),
            "question": _QUESTION,
            "shared_steps": _MISTAKE,
            **_TRACE_COLUMNS,
        },
        measures=_TRACE_MEASURES,
        rows=trace_chats,
        restore=restore_trace,
        restored=TRACES,
    ),
    "sft-ids": ExportFormat(
        kind=TRACES,
        title="Solutions with right final answers as token ids",
        about=(
            f"{_TRACES_ABOUT}\n\nTRL's `SFTTrainer`, and any trainer that takes `input_ids` and `labels`, trains on exactly the sampled "
            "tokens. Nothing is tokenised again."
        ),
        columns={
            "input_ids": _column(_IDS, "Token ids of prompt and solution."),
            "labels": _column(_IDS, "The same, with -100 in place of the prompt and of given tokens."),
            "assistant_masks": _column(_IDS, "1 where `labels` has a token, else 0."),
            "question": _QUESTION,
            "shared_steps": _MISTAKE,
            "solution": _column(_TEXT, "The solution as text.", "completion"),
            **_TRACE_COLUMNS,
        },
        measures=_TRACE_MEASURES,
        rows=trace_ids,
        restore=restore_trace,
        restored=TRACES,
    ),
    "kto": ExportFormat(
        kind=TREES,
        title="Right and wrong solutions",
        about=(
            "Each row is a solution that ended by itself, with its verdict. Equal solutions of one search are one row.\n\n"
            "TRL's `KTOTrainer` trains on the text columns without changes."
        ),
        columns={
            "prompt": _column(_TEXT, f"{_PROMPT_TEXT}."),
            "completion": _column(_TEXT, "The whole solution."),
            "label": _column(_BOOL, "Whether the final answer is right."),
            "question": _QUESTION,
            "shared_steps": _column(_TEXT, "Steps before the completion: none."),
            "prompt_token_ids": _PROMPT_TOKENS,
            "completion_token_ids": _column(_IDS, "Token ids of the solution, as sampled."),
            "value": _column(_FLOAT, "Mean backed-up value of its steps, in [0, 1]."),
            "prompt_value": _column(_FLOAT, "Share of right solutions among the graded solutions of its tree, in [0, 1]."),
            "completion_logps": _column(_NUMBERS, _LOGPS_MEANING),
            "completion_given": _column(_MARKS, _GIVEN),
        },
        rows=solution_rows,
        measures=_GRADED_MEASURES,
        restore=restore_solution,
        restored=GRADED,
        whole=False,
    ),
    "graded": ExportFormat(
        kind=GRADED,
        title="Good and bad continuations",
        about=(
            "Each row is a step or a solution that is good or bad by itself. The run's losses without pairs learn from these rows, if it "
            "uses one.\n\nTRL's `KTOTrainer` trains on the text columns without changes. It ends every completion with the end-of-sequence "
            "token, which only last steps really have. Train on the token ids to avoid that."
        ),
        columns={
            "prompt": _column(_TEXT, f"{_PROMPT_TEXT}, and the steps before."),
            "completion": _column(_TEXT, "The step, or the solution.", "completion"),
            "label": _column(_BOOL, "Whether it is good.", "good"),
            "question": _QUESTION,
            "shared_steps": _column(_TEXT, "The earlier steps, as text; empty for a solution."),
            "prompt_token_ids": _column(_IDS, "Token ids of the rendered prompt and the earlier steps.", "prompt_ids"),
            "completion_token_ids": _column(_IDS, "Token ids of the step, or the solution, as sampled.", "completion_ids"),
            "value": _column(_FLOAT, "Value of the continuation, in [0, 1].", "value"),
            "prompt_value": _column(
                _FLOAT, "Value of the node that it continues; for a solution, the share of right solutions of its problem.", "prompt_value"
            ),
            "completion_logps": _column(_NUMBERS, _LOGPS_MEANING, "logps"),
            "completion_given": _column(_MARKS, _GIVEN, "completion_given"),
        },
        rows=prompted_rows,
        measures=_GRADED_MEASURES,
        restore=restore_prompted,
        restored=GRADED,
    ),
    "stepwise": ExportFormat(
        kind=TREES,
        title="Solutions with good and bad steps",
        about=(
            f"{_JUDGED_ABOUT}\n\nThe columns are those of TRL's stepwise supervision, which its PRMTrainer accepted until 1.13. "
            "`stepladder prm train` accepts them as well."
        ),
        columns={
            "prompt": _column(_TEXT, "The question, verbatim."),
            "completions": _column(_TEXTS, "The steps, without the text that closes each."),
            "labels": _column(pa.list_(_BOOL), "Whether each step is good."),
            "targets": _column(_NUMBERS, "The labels as numbers; null if an earlier row of the same tree has the step."),
            **_STEP_COLUMNS,
        },
        measures={
            "steps": _size("labels"),
            "solution tokens": _inner_size("step_token_ids"),
            "share of good steps": _each("labels", lambda labels: sum(labels) / len(labels)),
        },
        rows=stepwise_rows,
        restore=restore_stepwise,
        restored=VALUES,
        whole=False,
    ),
    "math-shepherd": ExportFormat(
        kind=TREES,
        title="Solutions with good and bad steps in Math-Shepherd's form",
        about=(
            f"{_JUDGED_ABOUT}\n\nThe text has the form of the Math-Shepherd data set. `stepladder prm train` accepts it, and so does "
            "OpenRLHF's process reward trainer: `--input_key input --label_key value --placeholder_token ки --reward_tokens + -`."
        ),
        columns={
            "input": _column(_TEXT, "The question and the steps, with a `ки` after each step."),
            "label": _column(_TEXT, "The same text with `+` or `-` in place of every `ки`."),
            "value": _column(_TEXTS, "The signs alone."),
        },
        measures={"steps": _size("value"), "share of good steps": _each("value", lambda signs: signs.count("+") / len(signs))},
        rows=shepherd_rows,
        whole=False,
    ),
    "value": ExportFormat(
        kind=TREES,
        title="Values of states",
        about="Each row is a state of a search: a prompt with the steps so far, and its value. A regression learns `target` from `state`.",
        columns={
            "state": _column(_TEXT, f"{_PROMPT_TEXT}, and the steps so far."),
            "target": _column(_FLOAT, "Value of the state, in [0, 1]."),
            "visits": _column(_INT, "Simulations that passed through the state."),
            "depth": _column(_INT, "Steps so far; 0 is the prompt alone."),
            "stop_reason": _column(_TEXT, "Why the last step ended; `end` if the state is a finished solution."),
            "state_token_ids": _column(_IDS, "Token ids of the state."),
        },
        measures={name: _value(name) for name in ("target", "visits", "depth")} | {"state tokens": _size("state_token_ids")},
        rows=state_rows,
        whole=False,
    ),
    "value-paths": ExportFormat(
        kind=VALUES,
        title="Value targets of reasoning steps",
        about=(
            "Each row is a path through a search tree with a value target in [0, 1] at the end of its steps. The run's own process reward "
            "model learns from these rows. If several paths share a step, one of them has its target and the others have null, so that "
            "every step counts once. Null is context, not zero."
        ),
        columns={
            "prompt": _column(_TEXT, f"{_PROMPT_TEXT}."),
            "completions": _column(_TEXTS, "The steps, in order.", "steps"),
            "labels": _column(_NUMBERS, "Value target of each step, in [0, 1]; null if the step is context only.", "targets"),
            "question": _QUESTION,
            "prompt_token_ids": _PROMPT_TOKENS,
            "completion_token_ids": _column(pa.list_(_IDS), "Token ids of each step, as sampled.", "step_ids"),
            "observations": _column(_TEXTS, "The observation after each step, as text; empty without any.", "given_texts"),
            "observation_token_ids": _column(
                pa.list_(_IDS), "Its token ids, which the policy did not sample; empty without any.", "given_ids"
            ),
        },
        measures={
            "steps": _size("completions"),
            "mean target": _each("labels", _mean_known),
            "solution tokens": _inner_size("completion_token_ids"),
        },
        rows=value_path_rows,
        restore=restore_path,
        restored=VALUES,
    ),
    "tree": ExportFormat(
        kind=TREES,
        title="Search trees",
        about=_TREES_ABOUT,
        columns=_TREE_COLUMNS,
        measures=_TREE_MEASURES,
        rows=tree_rows,
        restore=restore_tree,
        restored=TREES,
    ),
    "tree-json": ExportFormat(
        kind=TREES,
        title="Search trees as JSON",
        about=(
            f"{_TREES_ABOUT} A line of a file is a tree.\n\nThe data set library may change the last bit of numbers in JSON files. "
            "`stepladder import` and Python's `json` read them exactly."
        ),
        columns=_TREE_COLUMNS,
        measures=_TREE_MEASURES,
        rows=tree_rows,
        restore=restore_tree,
        restored=TREES,
        suffix="jsonl",
    ),
    "trajectories": ExportFormat(
        kind=TREES,
        title="Graded solutions with advantages of every token",
        about=(
            "Each row is a solution of a search tree, with the log-probability and the advantage of each sampled token. verl's "
            "`RLHFDataset` reads the prompt columns and passes the others on. The token columns have the names of verl's batches. "
            "Solutions of one problem share a `uid`."
        ),
        columns={
            **_PROBLEM_COLUMNS,
            "uid": _column(_TEXT, "The problem's id, which groups solutions."),
            "response": _column(_TEXT, "The solution as text."),
            "outcome": _column(_FLOAT, "1 if the final answer is right, else 0 or its partial credit."),
            "stop_reason": _column(_TEXT, "Why the solution ended: `end` by itself, `length` or `depth` by a limit."),
            "prompts": _column(_IDS, "Token ids of the rendered prompt.", "prompt_ids"),
            "responses": _column(_IDS, "Token ids of the solution, as sampled."),
            "response_mask": _column(_IDS, "1 for each sampled token, 0 for a given one, whose other figures are 0."),
            "old_log_probs": _column(_NUMBERS, _LOGPS_MEANING),
            "advantages": _column(_NUMBERS, "Advantage of the step that each token belongs to."),
            "token_level_rewards": _column(_NUMBERS, "The outcome at the last token, 0 before."),
            "step_ends": _column(_IDS, "Index in `responses` of the last token of each step."),
        },
        measures={
            "share right": _value("outcome"),
            "largest advantage": _each("advantages", _largest),
            "solution tokens": _size("responses"),
        },
        rows=trajectory_rows,
        whole=False,
    ),
    "prompts": ExportFormat(
        kind=TREES,
        title="Problems for reinforcement learning",
        about=(
            "Each row is a problem with its reference answer and the share of right solutions in its search.\n\nverl's `RLHFDataset` reads "
            "the rows without changes. OpenRLHF reads them with `--input_key prompt --label_key label --apply_chat_template`."
        ),
        columns={
            **_PROBLEM_COLUMNS,
            "share_right": _column(_FLOAT, "Share of right solutions among those in the tree, in [0, 1]; null without solutions."),
            "num_solutions": _column(_INT, "Graded solutions in the tree."),
        },
        measures={"share right": _value("share_right"), "solutions": _value("num_solutions")},
        rows=problem_rows,
        per_problem=True,
        whole=False,
    ),
}


def record_from(row: Row, chosen: ExportFormat) -> Any:
    """Return the record from which an exported row was made."""
    assert chosen.restore is not None and chosen.restored is not None, "only formats that can be imported come here"
    copies = {column.field: row[name] for name, column in chosen.all_columns().items() if column.field in chosen.restored.columns}
    provenance = Provenance(**{name: row[name] for name in Provenance.__dataclass_fields__})
    fields = {**copies, **chosen.restore(row), "provenance": provenance}
    return chosen.restored.record(**fields)
