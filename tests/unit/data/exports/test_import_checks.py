"""Imported rows say the same in text and ids, and the policy has every id."""

from dataclasses import replace

import pytest

from stepladder.data.exports.import_checks import check_row
from stepladder.data.labels.graded import GradedSolutions
from stepladder.data.labels.pair_rules import EvidencePairs
from stepladder.data.labels.traces import select_traces
from stepladder.data.labels.value_rows import value_rows
from stepladder.errors import DataFormatError
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import Problem
from tests.tokenizer_families import FAMILIES
from tests.trees import tree

QUESTION = "What is\n1+1? <|im_end|>\n"


def _rows(name="qwen", chat=False):
    """Return a renderer, its vocabulary's size, and a row of every kind made from one tree of its tokens."""
    renderer = PromptRenderer(FAMILIES[name](), StepFormat(chat=chat))
    made = tree((-1, 0.5, None), (0, 0.8, None), (0, 0.2, None), (1, 1.0, 1.0), (1, 0.9, 1.0), (2, 0.1, 0.0), (2, 0.0, 0.0))
    texts = ["", "é = 1\n", " b\n", "c 2\n", "<|im_start|>\n", "e\n", "f\n"]
    ids = [[token for step in renderer.encode_steps(text) for token in step] for text in texts]
    record = replace(
        made,
        question=QUESTION,
        prompt_ids=list(renderer.prompt_ids(Problem(id="p", question=QUESTION))),
        texts=texts,
        token_ids=ids,
        logps=[[-1.0] * len(each) for each in ids],
    )
    rows = [record, *EvidencePairs(min_margin=0.0).select([record]).rows, *select_traces([record]).rows]
    rows += [*GradedSolutions().select([record]).rows, *value_rows([record]).rows]
    return renderer, max(renderer.tokenizer.get_vocab().values()) + 1, rows


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_as_they_were_made_pass(name, chat):
    """Trees, pairs, traces, graded rows and values of every family, questions of several lines and with control tokens included."""
    renderer, vocab_size, rows = _rows(name, chat)
    assert len({type(row) for row in rows}) == 5
    for row in rows:
        check_row(row, renderer, vocab_size=vocab_size, place="f:1")


@pytest.mark.parametrize(
    ("kind", "field", "name"),
    [
        ("PreferencePair", "chosen", "chosen"),
        ("PreferencePair", "rejected", "rejected"),
        ("Trace", "completion", "completion"),
        ("GradedRow", "completion", "completion"),
        ("ValueRow", "steps", "step 1"),
        ("TreeRecord", "texts", "node 1"),
        ("PreferencePair", "prompt", "prompt"),
        ("Trace", "prompt", "prompt"),
        ("ValueRow", "prompt", "prompt"),
        ("TreeRecord", "question", "prompt"),
    ],
)
def test_an_edited_text_is_refused_with_file_and_row(kind, field, name):
    """Whatever text of a row is changed by hand, one sentence says where, what it says, and what its ids say."""
    renderer, vocab_size, rows = _rows()
    row = next(row for row in rows if type(row).__name__ == kind)
    text = getattr(row, field)
    edited = f"{text[:3]}X{text[3:]}" if isinstance(text, str) else [*text[: len(text) - len(text[1:])], f"{text[1]}X", *text[2:]]
    if field == "steps":
        edited = [f"{text[0]}X", *text[1:]]
    with pytest.raises(DataFormatError, match=rf"data/train-00000.parquet:3: the (text|ids) of '{name}' must be .*X.* -- undo the edit"):
        check_row(replace(row, **{field: edited}), renderer, vocab_size=vocab_size, place="data/train-00000.parquet:3")


@pytest.mark.parametrize("field", ["prompt_ids", "chosen_ids", "rejected_ids"])
@pytest.mark.parametrize("wrong", [10_000, -1, None])
def test_ids_beyond_the_vocabulary_are_refused_with_file_and_row(field, wrong):
    """They would be refused by training only, after a whole search."""
    renderer, vocab_size, rows = _rows()
    row = next(row for row in rows if type(row).__name__ == "PreferencePair")
    broken = replace(row, **{field: [*getattr(row, field), wrong]})
    with pytest.raises(DataFormatError, match=rf"f:1: the ids of '{field[:-4]}' must be in \[0, {vocab_size}\), .*: got {wrong}"):
        check_row(broken, renderer, vocab_size=vocab_size, place="f:1")


def test_exchanged_ids_are_refused():
    """Ids that were edited, and not the text, are the same fault."""
    renderer, vocab_size, rows = _rows()
    row = next(row for row in rows if type(row).__name__ == "PreferencePair")
    with pytest.raises(DataFormatError, match="the text of 'chosen' must be that of its token ids"):
        check_row(replace(row, chosen_ids=row.rejected_ids), renderer, vocab_size=vocab_size, place="f:1")
