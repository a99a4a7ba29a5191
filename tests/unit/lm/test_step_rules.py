"""Rules for the end of a step, on token ids: written texts cut by hand, and the embedded engine against the same rule token by token."""

import re
from pathlib import Path

import numpy as np
import pytest

from stepladder.errors import ConfigError, DataFormatError
from stepladder.interfaces import StepRequest, collect_all
from stepladder.lm.step_rules import StepRule, boundary_of, cut_steps, forks
from stepladder.policy.backends.steps import OpenSample, StepRules
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import StopReason
from tests.models import tiny_policy, tiny_tokenizer


@pytest.mark.parametrize(
    ("rule", "text", "steps"),
    [
        (StepRule(text="\n"), "a\n\nb\nc", ["a\n", "\n", "b\n", "c"]),
        (StepRule(text="\n\n"), "a\n\nb\nc", ["a\n\n", "b\nc"]),
        (StepRule(text="</step>"), "<step>a</step><step>b</step>", ["<step>a</step>", "<step>b</step>"]),
        (StepRule(name="sentence"), "it is 3.14. so we add? yes", ["it is 3.14. so we add?", " yes"]),
        (StepRule(name="sentence"), "we add. it fits, e.g. here.\nend", ["we add.", " it fits, e.g. here.", "\nend"]),
        (StepRule(name="sentence"), "one line\ntwo", ["one line\n", "two"]),
        (StepRule(name="pattern", pattern=r"\nstep \d+:"), "step 1: a\nb\nstep 2: c", ["step 1: a\nb\nstep 2:", " c"]),
        (StepRule(name="tokens", num_tokens=3), "abcdefgh", ["abc", "def", "gh"]),
        (StepRule(name="surprise"), "abc\ndef", ["abc\ndef"]),
        (StepRule(thinking_end="</think>"), "a\nb</think>c\n", ["a\n", "b</think>", "c\n"]),
        (StepRule(name="tokens", num_tokens=40, thinking_end="</think>"), "ab</think>cd", ["ab</think>", "cd"]),
    ],
    ids=lambda value: value.name if isinstance(value, StepRule) else None,
)
@pytest.mark.parametrize("vocab", ["chars", "bytes"])
def test_texts_are_cut_at_the_token_that_closes_a_step(rule: StepRule, text: str, steps: list[str], vocab: str) -> None:
    """The steps concatenate to the text, and each ends where the rule says."""
    tokenizer = tiny_tokenizer(vocab)  # type: ignore[arg-type]
    ids = tokenizer.encode(text, add_special_tokens=False)
    cut = cut_steps(boundary_of(tokenizer, rule, vocab_size=len(tokenizer)), ids)
    assert [tokenizer.decode(list(step)) for step in cut] == steps
    assert [token for step in cut for token in step] == ids


def test_a_number_of_tokens_does_not_cut_a_character() -> None:
    """Two bytes of one character stay in one step, so that the texts of steps are whole."""
    tokenizer = tiny_tokenizer("bytes")
    ids = tokenizer.encode("a\u00e9b", add_special_tokens=False)
    cut = cut_steps(boundary_of(tokenizer, StepRule(name="tokens", num_tokens=2), vocab_size=len(tokenizer)), ids)
    assert [tokenizer.decode(list(step)) for step in cut] == ["a\u00e9", "b"]


def test_an_uncertain_token_begins_a_step() -> None:
    """Only under its rule, from the smallest length on, and at the threshold."""
    rule = StepRule(name="surprise", num_tokens=2, surprise=1.5)
    assert forks(rule, num_tokens=2, logp=-1.5)
    assert not forks(rule, num_tokens=1, logp=-9.0)
    assert not forks(rule, num_tokens=9, logp=-1.4)
    assert not forks(StepRule(num_tokens=1), num_tokens=9, logp=-9.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": "tokens", "step_tokens": 5},
        {"steps": "sentence"},
        {"steps": "pattern", "step_pattern": "[a-e]"},
        {"steps": "surprise", "step_tokens": 2, "step_surprise": 3.5},
        {"steps": "text", "thinking_end": "a"},
    ],
    ids=lambda settings: settings["steps"],
)
@pytest.mark.parametrize("max_steps", [1, 4])
def test_the_engine_ends_steps_where_the_rule_says(settings: dict, max_steps: int) -> None:
    """Samples of the embedded engine, fed token by token to the rule of the other engines, end in the same steps for the same reasons."""
    model, tokenizer = tiny_policy()
    step_format = StepFormat(**settings)
    policy = TransformersPolicy(model, tokenizer, step_format)
    request = StepRequest(ticket=0, prefix_ids=(5, 6, 7), num_samples=6, seed=3, max_step_tokens=12, max_steps=max_steps)
    (result,) = collect_all(policy, [request])
    rules = StepRules(tokenizer, step_format, vocab_size=model.config.vocab_size)
    lengths = set()
    for sample in result.samples:
        other = OpenSample(rules, request, context=model.config.max_position_embeddings)
        tokens = [(token, logp) for step in sample for token, logp in zip(step.token_ids, step.logps, strict=True)]
        over = False
        for token, logp in tokens:
            over = other.feed(token, logp)
        if not over and settings["steps"] == "surprise":
            # The token before which the last step ended was not kept.
            over = other.feed(tokens[0][0], -99.0)
        assert over
        assert [step.token_ids for step in other.steps] == [step.token_ids for step in sample]
        assert [step.stop_reason for step in other.steps] == [step.stop_reason for step in sample]
        lengths |= {len(step.token_ids) for step in sample if step.stop_reason == StopReason.STEP}
    assert lengths == {5} if settings["steps"] == "tokens" else lengths


def test_answers_are_read_after_the_thinking_block() -> None:
    """A box inside the block states nothing and ends nothing; without the end of the block there is no answer."""
    step_format = StepFormat(thinking_end="</think>")
    assert step_format.extract_answer("maybe \\boxed{1}</think>it is \\boxed{2}") == "2"
    assert step_format.extract_answer("maybe \\boxed{1}") is None
    assert not step_format.is_final("so \\boxed{2}\n")
    assert StepFormat(thinking_end="</think>", answer="solution").extract_answer("a</think> b ") == "b"


def test_written_solutions_end_with_the_end_token_where_no_text_closes_a_step() -> None:
    """Under a number of tokens the answer's step is open, so the end token follows it."""
    tokenizer = tiny_tokenizer()
    renderer = PromptRenderer(tokenizer, StepFormat(steps="tokens", step_tokens=4, answer_pattern="=([a-z])"))
    steps = renderer.encode_solution("abcd=e")
    assert [tokenizer.decode(list(step), skip_special_tokens=True) for step in steps] == ["abcd", "=e"]
    assert steps[-1][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": "lines"}, "steps: must be one of text, sentence, pattern, tokens, surprise"),
        ({"steps": "pattern"}, "step_pattern: goes with steps = 'pattern'"),
        ({"step_pattern": "a"}, "step_pattern: goes with steps = 'pattern'"),
        ({"steps": "pattern", "step_pattern": "("}, "must be a regular expression"),
        ({"step_tokens": 0}, "must be at least 1 and above 0"),
        ({"thinking_end": ""}, "thinking_end: must not be empty"),
    ],
)
def test_impossible_rules_are_one_sentence(settings: dict, words: str) -> None:
    """Names, patterns and numbers are checked when the format is made."""
    with pytest.raises(ConfigError) as caught:
        StepFormat(**settings)
    assert words in str(caught.value)


def test_completion_is_decided_by_arrays_of_ids() -> None:
    """``completes`` takes what the engines hold: a NumPy array of the open step."""
    tokenizer = tiny_tokenizer()
    boundary = boundary_of(tokenizer, StepRule(name="sentence"), vocab_size=len(tokenizer))
    assert boundary.completes(np.array(tokenizer.encode("so.", add_special_tokens=False)))
    assert not boundary.completes(np.array(tokenizer.encode("1.", add_special_tokens=False)))


RULES = """
def ends(text):
    return text.endswith("\\n") and not text.rstrip().endswith("=")

def wrong(text):
    return 1

def fails(text):
    return [][0]

def two(text, more):
    return True
"""


def test_a_function_says_where_steps_end(tmp_path: Path) -> None:
    """It sees the open step alone, also for written solutions; both engines agree with it; its source is part of the format's hash."""
    (tmp_path / "rules.py").write_text(RULES)
    name = f"{tmp_path / 'rules.py'}:ends"
    tokenizer = tiny_tokenizer("bytes")
    boundary = boundary_of(tokenizer, StepRule(name=name), vocab_size=len(tokenizer))
    ids = tokenizer.encode("1 + 1 =\n2\n\u00e9\n3", add_special_tokens=False)
    assert [tokenizer.decode(list(step)) for step in cut_steps(boundary, ids)] == ["1 + 1 =\n2\n", "\u00e9\n", "3"]
    renderer = PromptRenderer(tokenizer, StepFormat(steps=name))
    assert [renderer.decode(step) for step in renderer.encode_steps("a =\nb\nc\n")] == ["a =\nb\n", "c\n"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rules.py").write_text(RULES)
    assert PromptRenderer(tokenizer, StepFormat(steps=f"{elsewhere / 'rules.py'}:ends")).hash == renderer.hash
    (elsewhere / "changed").mkdir()
    (elsewhere / "changed" / "rules.py").write_text(RULES.replace('"="', '"-"'))
    assert PromptRenderer(tokenizer, StepFormat(steps=f"{elsewhere / 'changed' / 'rules.py'}:ends")).hash != renderer.hash


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("wrong", DataFormatError, "must return True or False: got 1 of type int -- correct it"),
        ("fails", DataFormatError, "must say whether a step ends: it raised IndexError: list index out of range for 'a' -- correct it"),
        ("two", ConfigError, "must take one argument, the text of a step: got"),
        ("gone", ConfigError, "must name a function that can be imported"),
    ],
)
def test_a_function_that_is_no_rule_is_one_sentence(tmp_path: Path, function: str, error: type[Exception], said: str) -> None:
    """With the setting, what was wrong, and what to do."""
    (tmp_path / "rules.py").write_text(RULES)
    tokenizer = tiny_tokenizer("bytes")
    with pytest.raises(error, match=re.escape(said)) as caught:
        boundary = boundary_of(tokenizer, StepRule(name=f"{tmp_path / 'rules.py'}:{function}"), vocab_size=len(tokenizer))
        cut_steps(boundary, tokenizer.encode("ab", add_special_tokens=False))
    assert str(caught.value).startswith("format.steps: ") and "\n" not in str(caught.value)
