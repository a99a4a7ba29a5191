"""Text without tokens, in questions, solutions and the marks of a format, found before any work."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepladder.data.datasets.problems import SeedSolution
from stepladder.errors import ConfigError
from stepladder.lm.encoding import TextEncoder
from stepladder.loops.assembly.unknown_text import fixed_text, unknown_in_format, unknown_in_prompts, unknown_in_solutions
from stepladder.loops.config.problems import FormatConfig
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.testing.texts import TEXTS
from stepladder.types import Problem
from tests.models import UNK, tiny_tokenizer
from tests.tokenizer_families import FAMILIES

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _renderer(step_format: StepFormat | None = None) -> PromptRenderer:
    return PromptRenderer(tiny_tokenizer(), step_format or StepFormat())


def _few_bytes(*, blank_before: bool) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that was trained on text without brackets: it has no unknown token and leaves them out."""
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(each for each in ALPHABET if each not in "[]")}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank_before)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _words(unknown: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of two words, whose settings may not name the unknown token of its model."""
    core = Tokenizer(models.WordLevel(vocab={UNK: 0, "one": 1, "two": 2}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unknown)


def test_unknown_characters_are_found_once_and_in_order():
    """The tokenizer of characters has small letters, but neither É nor braces; what looks like its unknown token is text."""
    encoder = TextEncoder(tiny_tokenizer())
    assert encoder.unknown_in("a}b{c} [É]") == ["}", "{", "É"]
    assert encoder.unknown_in(f"a {UNK} b") == []
    # A control token that a template wrote is meant.
    assert encoder.unknown_in(f"a {UNK} É", controls=[(2, 2 + len(UNK))]) == ["É"]


@pytest.mark.parametrize("name", FAMILIES)
def test_public_families_know_every_text(name):
    """They are byte-level or fall back to bytes."""
    encoder = TextEncoder(FAMILIES[name]())
    assert [encoder.unknown_in(text) for text in TEXTS] == [[] for _ in TEXTS]


@pytest.mark.parametrize("blank_before", [True, False])
def test_characters_that_a_tokenizer_leaves_out_are_found(blank_before):
    """Without an unknown token there is no id to look for. Blanks and characters that cannot be seen are nobody's loss."""
    assert TextEncoder(_few_bytes(blank_before=blank_before)).unknown_in("a [b]\n\u200b é") == ["[", "]"]


@pytest.mark.parametrize("unknown", [UNK, None])
def test_unknown_words_are_found_where_only_the_model_names_its_unknown_token(unknown):
    """A word is a piece."""
    assert TextEncoder(_words(unknown)).unknown_in("one three two four three") == ["three", "four"]


def test_prompts_with_unknown_text_by_hand():
    """Two of three questions; what is around every question is told apart."""
    problems = [Problem(id=id, question=question) for id, question in (("p", "1+1"), ("q", "É{1}"), ("r", "{"))]
    [found] = unknown_in_prompts(_renderer(), "train", problems, policy="m", apart=["{"])
    assert found.warning == (
        "train: the prompt of problem 'q' holds 'É', '}', for which the tokenizer of m has no token: the policy cannot read it -- leave it "
        "out, or take a policy whose tokenizer has them"
    )
    [found] = unknown_in_prompts(_renderer(), "train", problems, policy="m")
    assert "'q' holds 'É', '{', '}', and 2 of 3 that were read hold such text, for which" in found.warning
    assert unknown_in_prompts(_renderer(), "train", problems[:1], policy="m") == []


def test_many_unknown_pieces_are_counted():
    """Five are shown."""
    [found] = unknown_in_prompts(_renderer(), "test", [Problem(id="p", question="ABCDEFG")], policy="m")
    assert "holds 'A', 'B', 'C', 'D', 'E' and 2 more, for which" in found.warning


def test_solutions_none_of_which_can_be_written_are_refused():
    """With one that can be written, the others are a warning; beyond the first 256, one is enough as well."""

    def solutions(*texts: str) -> list[SeedSolution]:
        return [SeedSolution(id=f"s{i}", question="?", solution=text) for i, text in enumerate(texts)]

    source, renderer = Path("seeds.jsonl"), _renderer()
    assert unknown_in_solutions(renderer, source, solutions("1\n", "2\n"), policy="m") == []
    [found] = unknown_in_solutions(renderer, source, solutions("1\n", "{2}\n", "{3}\n"), policy="m")
    assert found.warning.startswith("seeds.jsonl: solution 's1' holds '{', '}', and 2 of 3 that were read hold such text, for which the")
    assert unknown_in_solutions(renderer, source, solutions(*["{"] * 300, "1"), policy="m")
    with pytest.raises(
        ConfigError, match=r"^seeds.jsonl: the tokenizer of m must have .* none for '\{', which solution 's0' holds, .* -- "
    ):
        unknown_in_solutions(renderer, source, solutions(*["{"] * 300), policy="m")


def test_marks_of_a_format_need_tokens():
    """The text around a question, the end of a step, of a thinking block, and what states an answer."""

    def places(**stated: str) -> list[tuple[str, str]]:
        section = FormatConfig.model_validate(stated)
        renderer = _renderer(StepFormat(**{**section.model_dump(), "chat": False}))
        return [(each.place, each.found) for each in unknown_in_format(renderer, section, policy="m")]

    assert places(answer_pattern=r"#### (.+)") == []
    # Without a pattern, a box states the answer.
    assert places() == [("format.answer_pattern", "needs '\\\\', '{', '}'")]
    assert places(answer="solution") == []
    assert places(answer_pattern=r"\{(.+)\}") == [("format.answer_pattern", "needs '{', '}'")]
    assert places(answer_pattern="#(.)", prompt_template="Q: {question}\n") == [("format", "the text around a question holds 'Q'")]
    assert places(answer_pattern="#(.)", step_end="END") == [("format.step_end", "needs 'E', 'N', 'D'")]
    # Another rule does not look at the text.
    assert places(answer_pattern="#(.)", step_end="END", steps="sentence") == []
    assert places(answer_pattern="#(.)", thinking_end="</THINK>")[0] == ("format.thinking_end", "needs 'T', 'H', 'I', 'N', 'K'")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"#### (.+)", "#### "),
        (r"\[(\d+)\]", "[]"),
        (r"a?b*c{2}d+[^\]x]y", "dy"),
        (r"=\s*(.)$", "="),
        ("a(b)|c", ""),
        ("(?i)answer (.)", ""),
    ],
)
def test_text_that_every_match_holds(pattern, expected):
    """What is optional, a class, a group or an alternative need not be there."""
    assert fixed_text(pattern) == expected
