"""Conversion of a run's records to the rows of exported data sets, and back.

Every function ``*_rows`` yields pairs (record, columns that are not copies of its fields), and counts what it leaves out by reason. Every
function ``restore_*`` returns the fields of a record that are not copies of columns. The text of a prompt is the run's template filled with
the question. With a chat template, the policy saw this text inside a message.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

from stepladder.data.datasets.labelled_solutions import SHEPHERD_BEGIN, SHEPHERD_MARKER
from stepladder.data.labels.advantages import AdvantageForm, node_advantages, path_advantages
from stepladder.data.labels.candidates import find_solutions, judge_trees
from stepladder.data.labels.value_rows import untaken_paths
from stepladder.data.labels.values import ValueTarget, node_values
from stepladder.data.store import TREES
from stepladder.errors import DataFormatError
from stepladder.tree_paths import join_prompt, observation_ids, observation_text, path_tokens
from stepladder.types import GradedRow, PreferencePair, StopReason, Trace, TreeRecord, ValueRow

Row = dict[str, Any]
PromptedT = TypeVar("PromptedT", PreferencePair, GradedRow, Trace)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """Facts about a run that its rows do not contain."""

    questions: Mapping[str, str] = field(default_factory=dict)
    """Question of every problem by id, where the trees of the export do not have it."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Reference answer of every problem by id, for formats that pass problems to another trainer."""
    prompt_template: str = "{question}\n"
    """Template of the policy's prompt."""
    step_end: str = "\n"
    """Text that closes a step."""
    system: str | None = None
    """System message of the prompt."""
    target: ValueTarget = ValueTarget.MONTE_CARLO
    """Definition of a node's value, for ``value`` and for advantages over the parent."""
    advantage: AdvantageForm = AdvantageForm.PARENT
    """Baseline of the advantages."""
    name: str = "stepladder"
    """Name of the problems' source: a data set's hub id or the stem of a file."""
    ability: str = "reasoning"
    """Kind of problem, as verl's tables name it."""

    def prompt(self, question: str) -> str:
        """Return the text of the prompt for a question."""
        return self.prompt_template.replace("{question}", question)

    def messages(self, question: str) -> list[Row]:
        """Return the prompt as chat messages."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.prompt(question)}]

    def question(self, problem_id: str) -> str:
        """Return the question of a problem.

        Raises:
            DataFormatError: If it is unknown.
        """
        if problem_id not in self.questions:
            raise DataFormatError(f"problem {problem_id!r}: its question must be in the trees of the exported rounds: not found")
        return self.questions[problem_id]

    def answer(self, problem_id: str) -> str:
        """Return the reference answer of a problem.

        Raises:
            DataFormatError: If it is not known.
        """
        if problem_id not in self.answers:
            raise DataFormatError(
                f"problem {problem_id!r}: its reference answer must be in the run's training problems: not found "
                "-- restore that file, or export another format"
            )
        return self.answers[problem_id]


RowMaker = Callable[[Sequence[Any], ExportSource, Counter[str]], Iterator[tuple[Any, Row]]]
"""Maps the records of a shard to pairs (record, columns that are not copies), and counts what it leaves out by reason."""


def prompted_rows(records: Sequence[PromptedT], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[PromptedT, Row]]:
    """Yield every pair, trace or graded row as text."""
    for record in records:
        question, shared = _split_prompt(record, source)
        yield record, {"prompt": source.prompt(question) + shared, "question": question, "shared_steps": shared}


def pair_chats(records: Sequence[PreferencePair], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[PreferencePair, Row]]:
    """Yield every pair as chats: the shared steps begin both replies."""
    for pair in records:
        question, shared = _split_prompt(pair, source)
        yield (
            pair,
            {
                "prompt": source.messages(question),
                "chosen": _reply(shared + pair.chosen),
                "rejected": _reply(shared + pair.rejected),
                "question": question,
                "shared_steps": shared,
            },
        )


def _split_prompt(record: PromptedT, source: ExportSource) -> tuple[str, str]:
    """Return the question of a row, and the text of the steps before its completion."""
    question = source.question(record.problem_id)
    head = join_prompt(question, [])
    if record.prompt != question and not record.prompt.startswith(head):
        raise DataFormatError(
            f"row of {record.problem_id!r}: prompt must begin with its question {question[:80]!r}: got {record.prompt[:80]!r}"
        )
    return question, record.prompt[len(head) :]


def restore_prompted(row: Row) -> Row:
    """Return the fields that a row with a question and earlier steps does not copy."""
    return {"prompt": join_prompt(row["question"], [row["shared_steps"]])}


def trace_chats(records: Sequence[Trace], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[Trace, Row]]:
    """Yield every trace from the question on as a chat. Revisions are left out, because their mistakes would be part of a learned reply."""
    for trace in records:
        question, shared = _split_prompt(trace, source)
        if shared:
            dropped["revision, which needs text or token ids"] += 1
            continue
        yield (
            trace,
            {
                "prompt": source.messages(question),
                "completion": _reply(trace.completion),
                "question": question,
                "shared_steps": shared,
            },
        )


def trace_ids(records: Sequence[Trace], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[Trace, Row]]:
    """Yield every trace as token ids with labels."""
    for trace in records:
        question, shared = _split_prompt(trace, source)
        ids = [*trace.prompt_ids, *trace.completion_ids]
        mask = [0] * len(trace.prompt_ids) + _sampled(trace.completion_given, trace.completion_ids)
        labels = [token if learned else -100 for token, learned in zip(ids, mask, strict=True)]
        yield trace, {"input_ids": ids, "labels": labels, "assistant_masks": mask, "question": question, "shared_steps": shared}


def restore_trace(row: Row) -> Row:
    """Return the fields that a trace does not copy."""
    return restore_prompted(row) if row["shared_steps"] else restore_path(row)


def restore_path(row: Row) -> Row:
    """Return the fields that a path of values does not copy."""
    return {"prompt": row["question"]}


def _reply(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def _sampled(given: Sequence[bool], ids: Sequence[int]) -> list[int]:
    """Return 1 for every sampled token and 0 for every given one, as trainers have their masks."""
    return [int(not each) for each in given] or [1] * len(ids)


def value_path_rows(records: Sequence[ValueRow], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[ValueRow, Row]]:
    """Yield every path with its targets."""
    for row in records:
        yield row, {"prompt": source.prompt(row.prompt), "question": row.prompt}


def _solutions(record: TreeRecord, dropped: Counter[str]) -> Iterator[tuple[int, list[int]]]:
    """Yield every graded leaf that has tokens, with the nodes of its path."""
    for leaf, path in untaken_paths(record, [0.0] * len(record.parents)):
        if not record.token_ids[leaf]:
            dropped["failed step" if leaf else "not expanded"] += 1
        elif record.outcomes[leaf] is None:
            dropped["not graded"] += 1
        else:
            yield leaf, [node for node, _ in path]


def _path_columns(record: TreeRecord, path: Sequence[int]) -> Row:
    observed = any(observation_ids(record, node) for node in path[:-1])
    last = [False] * (len(path) - 1) + [True]
    pairs = list(zip(path, last, strict=True))
    return {
        "steps": [record.texts[node] for node in path],
        "step_token_ids": [record.token_ids[node] for node in path],
        "observations": ["" if end else observation_text(record, node) for node, end in pairs] if observed else [],
        "observation_token_ids": [[] if end else observation_ids(record, node) for node, end in pairs] if observed else [],
    }


def _read_texts(record: TreeRecord, path: Sequence[int]) -> list[str]:
    """Return the steps of a path as a process reward model reads them: each begins with the observation before it."""
    before = ["", *(observation_text(record, node) for node in path[:-1])]
    return [observed + record.texts[node] for observed, node in zip(before, path, strict=True)]


def solution_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield each finished graded solution of a tree once, in the order of the leaves."""
    for record in records:
        (tree,) = judge_trees([record])
        found = [solution for right in (True, False) for solution in find_solutions(tree, right=right, dropped=dropped)]
        graded = [outcome for outcome in record.outcomes if outcome is not None]
        seen: set[tuple[int, ...]] = set()
        for solution in sorted(found, key=lambda solution: solution.path[-1]):
            leaf, tokens = solution.path[-1], solution.tokens
            if record.stop_reasons[leaf] != StopReason.END:
                dropped["did not end by itself"] += 1
            elif tuple(tokens.ids) in seen:
                dropped["same tokens"] += 1
            else:
                seen.add(tuple(tokens.ids))
                yield (
                    record,
                    {
                        "prompt": source.prompt(record.question),
                        "completion": tokens.text,
                        "label": record.outcomes[leaf] == 1.0,
                        "question": record.question,
                        "shared_steps": "",
                        "completion_token_ids": tokens.ids,
                        "value": solution.mean,
                        "prompt_value": sum(graded) / len(graded),
                        "completion_logps": tokens.logps,
                        "completion_given": tokens.given,
                    },
                )


def restore_solution(row: Row) -> Row:
    """Return a solution as a graded row."""
    names = {"good": "label", "completion": "completion", "completion_ids": "completion_token_ids", "logps": "completion_logps"}
    same = ("value", "prompt_value", "completion_given")
    copies = {field: row[column] for field, column in names.items()} | {name: row[name] for name in same}
    return {**copies, **restore_prompted(row)}


def _judged_paths(record: TreeRecord, dropped: Counter[str]) -> Iterator[tuple[list[int], list[bool], list[float | None]]]:
    """Yield the paths that end at a step with evidence: nodes, whether a right leaf is at or below each, and each target once."""
    targets = node_values(record, ValueTarget.HARD_MAX)
    for leaf, path in untaken_paths(record, targets):
        if path:
            nodes = [node for node, _ in path]
            # If a step has evidence, so has every step above it.
            yield nodes, [targets[node] == 1.0 for node in nodes], [target for _, target in path]
        else:
            dropped["no target" if record.token_ids[leaf] or leaf == 0 else "failed step"] += 1


def stepwise_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield every judged path with the labels of all its steps."""
    for record in records:
        for nodes, labels, targets in _judged_paths(record, dropped):
            steps = _path_columns(record, nodes)
            texts = [step.removesuffix(source.step_end) for step in _read_texts(record, nodes)]
            yield record, {"prompt": record.question, "completions": texts, "labels": labels, "targets": targets, **steps}


def shepherd_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield every judged path as Math-Shepherd's pair of texts."""
    for record in records:
        for nodes, labels, _ in _judged_paths(record, dropped):
            texts = [text.strip() for text in _read_texts(record, nodes)]
            if any(SHEPHERD_MARKER in text for text in (record.question, *texts)) or SHEPHERD_BEGIN in record.question:
                dropped["holds a marker of the form"] += 1
                continue
            parts = [f"Step {number}: {text} " for number, text in enumerate(texts, 1)]
            signs = ["+" if label else "-" for label in labels]
            marked, signed = (
                f"{record.question} " + "\n".join(f"{part}{mark}" for part, mark in zip(parts, marks, strict=True))
                for marks in ([SHEPHERD_MARKER] * len(parts), signs)
            )
            yield record, {"input": marked, "label": signed, "value": signs}


def restore_stepwise(row: Row) -> Row:
    """Return a judged path as a value row, in which every step of the tree has its target once."""
    copies = {"prompt_ids": "prompt_token_ids", "step_ids": "step_token_ids", "prompt": "prompt", "steps": "steps", "targets": "targets"}
    copies |= {"given_ids": "observation_token_ids", "given_texts": "observations"}
    return {field: row[column] for field, column in copies.items()}


def state_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield every node with a value, together with the whole text and all tokens up to it."""
    for record in records:
        texts, ids = [source.prompt(record.question)], [record.prompt_ids]
        targets = node_values(record, source.target)
        for node, parent in enumerate(record.parents):
            if node:
                texts.append(texts[parent] + observation_text(record, parent) + record.texts[node])
                ids.append([*ids[parent], *observation_ids(record, parent), *record.token_ids[node]])
            if node and not record.token_ids[node]:
                dropped["failed step"] += 1
            elif targets[node] is None:
                dropped["no target"] += 1
            else:
                place = {"depth": record.depths[node], "visits": record.visits[node], "stop_reason": record.stop_reasons[node]}
                yield record, {"state": texts[node], "target": targets[node], **place, "state_token_ids": ids[node]}


def tree_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield every tree with the advantages of its steps."""
    for record in records:
        advantages = node_advantages(record, source.advantage, target=source.target)
        per_token = [[advantage] * len(ids) for advantage, ids in zip(advantages, record.token_ids, strict=True)]
        yield record, {"advantages": advantages, "token_advantages": per_token}


def restore_tree(row: Row) -> Row:
    """Return the fields that a tree does not copy."""
    return {"schema_version": TREES.version}


def trajectory_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield every graded solution with the advantage of each token."""
    for record in records:
        advantages = node_advantages(record, source.advantage, target=source.target)
        for leaf, path in _solutions(record, dropped):
            of_steps = path_advantages(advantages, path, source.advantage)
            if None in of_steps:
                dropped["no advantage"] += 1
                continue
            whole = path_tokens(record, path)
            mask = _sampled(whole.given, whole.ids)
            of_tokens = iter([value for node, value in zip(path, of_steps, strict=True) for _ in record.token_ids[node]])
            starts = accumulate((len(record.token_ids[node]) + len(observation_ids(record, node)) for node in path), initial=0)
            tokens = {
                "responses": whole.ids,
                "response_mask": mask,
                "old_log_probs": whole.logps,
                "advantages": [next(of_tokens) if sampled else 0.0 for sampled in mask],
                "token_level_rewards": [0.0] * (len(whole.ids) - 1) + [record.outcomes[leaf]],
                "step_ends": [start + len(record.token_ids[node]) - 1 for node, start in zip(path, starts, strict=False)],
            }
            ends = {"outcome": record.outcomes[leaf], "stop_reason": record.stop_reasons[leaf]}
            yield record, {**_problem_columns(record, source), "uid": record.problem_id, "response": whole.text, **ends, **tokens}


def problem_rows(records: Sequence[TreeRecord], source: ExportSource, dropped: Counter[str]) -> Iterator[tuple[TreeRecord, Row]]:
    """Yield every problem with the share of right solutions."""
    for record in records:
        # Every problem is a row, whatever its solutions are: nothing is left out here.
        outcomes = [record.outcomes[leaf] for leaf, _ in _solutions(record, Counter())]
        share = sum(outcome == 1.0 for outcome in outcomes) / len(outcomes) if outcomes else None
        yield record, {**_problem_columns(record, source), "share_right": share, "num_solutions": len(outcomes)}


def _problem_columns(record: TreeRecord, source: ExportSource) -> Row:
    answer = source.answer(record.problem_id)
    return {
        "data_source": source.name,
        "prompt": source.messages(record.question),
        "ability": source.ability,
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": record.problem_id, "question": record.question},
        "datasource": source.name,
        "label": answer,
    }
