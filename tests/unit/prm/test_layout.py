"""Question and steps of a reward model's input are text, whatever they spell; the markers and the chat are tokens."""

from functools import partial

import pytest

from stepladder.errors import DataFormatError
from stepladder.lm import chat
from stepladder.lm.encoding import special_ids
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from tests.prm_models import llama3_tokenizer, mistral_tokenizer, qwen_tokenizer
from tests.tokenizer_families import FAMILIES

SPECS = {
    "qwen2.5-math-prm": qwen_tokenizer,
    "math-shepherd": mistral_tokenizer,
    "rlhflow-llama": llama3_tokenizer,
    "openr-math-psa": qwen_tokenizer,
    "skywork-o1-open-prm": qwen_tokenizer,
    "trl": qwen_tokenizer,
    "ppm": qwen_tokenizer,
    "implicit": qwen_tokenizer,
    "pure-prm": qwen_tokenizer,
    "reasonflux-prm-7b": qwen_tokenizer,
    "versaprm": partial(llama3_tokenizer, with_breaks=True),
}


def _control_tokens(ids, tokenizer):
    return [i for i in ids if i in special_ids(tokenizer) - {tokenizer.unk_token_id}]


@pytest.mark.parametrize("name", SPECS)
def test_control_tokens_in_question_and_steps_are_text(name):
    """As many control tokens as with ordinary text, all text in the input, and every read position at a step's own end."""
    tokenizer = SPECS[name]()
    layout = SolutionLayout(tokenizer, NAMED_SPECS[name].spec)
    plain = layout.lay_out("p q r", ["x y z", "u v w"])
    for control in (token.content for token in tokenizer.added_tokens_decoder.values() if token.special):
        if control == layout.spec.marker or control == tokenizer.unk_token:
            continue
        question, steps = f"p {control} r", [f"x {control} z", f"u {control} w"]
        laid = layout.lay_out(question, steps)
        assert _control_tokens(laid.token_ids, tokenizer) == _control_tokens(plain.token_ids, tokenizer)
        assert [laid.token_ids[read] for read in laid.reads] == [plain.token_ids[read] for read in plain.reads]
        text = tokenizer.decode(laid.token_ids)
        assert text.count(control) == 3 + tokenizer.decode(plain.token_ids).count(control)
        ends = [tokenizer.decode(laid.token_ids[: read + 1]).count(control) for read in laid.reads]
        assert ends[1] - ends[0] == 1 + sum(
            tokenizer.decode(plain.token_ids[: read + 1]).count(control) * sign for read, sign in zip(plain.reads, (-1, 1), strict=True)
        )


def test_a_marker_that_is_a_control_token_stays_refused_in_text():
    """Such a text most likely comes from rows that hold the markers already."""
    layout = SolutionLayout(qwen_tokenizer(), NAMED_SPECS["qwen2.5-math-prm"].spec)
    with pytest.raises(DataFormatError, match=r"rows.jsonl:4: the marker '<extra_0>' must stand once after every step: got 3 for 2"):
        layout.lay_out("q", ["a", "b<extra_0>"], place="rows.jsonl:4")


def test_the_begin_token_stands_once_in_plain_prompts():
    """Whether the tokenizer adds it, the spec asks for it, or its template writes it."""
    tokenizer = FAMILIES["llama3"]()
    begin = tokenizer.bos_token_id
    for fields in (
        {"read": "step-end"},
        {"read": "step-end", "question": f"{tokenizer.bos_token}{{question}}\n"},
        {"read": "piece-end", "bos": True},
        {"read": "piece-end", "bos": True, "question": f"{tokenizer.bos_token}{{question}}\n"},
    ):
        layout = SolutionLayout(tokenizer, PRMSpec(family="value-head", prompt="plain", **fields))
        for question in ("q", f"{tokenizer.bos_token} q"):
            assert layout.lay_out(question, ["a", "b"]).token_ids.count(begin) == 1


def test_what_a_reward_model_reads_does_not_depend_on_the_day(monkeypatch):
    """A template that prints a date prints the same one always."""

    class Tomorrow(chat.Date):
        @classmethod
        def today(cls):
            return cls(2040, 1, 2)

    spec = PRMSpec(family="value-head", prompt="chat", read="step-end")
    layout = SolutionLayout(FAMILIES["llama3"](), spec)
    today = layout.lay_out("q", ["a"])
    monkeypatch.setattr(chat, "Date", Tomorrow)
    assert layout.lay_out("q", ["a"]) == today
    assert "26 Jul 2024" in FAMILIES["llama3"]().decode(today.token_ids)
