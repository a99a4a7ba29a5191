"""Foreign text as ids: names of control tokens are text, and nothing else changes."""

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from stepladder.errors import DataFormatError
from stepladder.lm.chat import FIXED_DATE, render_chat, turn_end
from stepladder.lm.encoding import TextEncoder, special_ids
from stepladder.testing.texts import TEXTS
from tests.tokenizer_families import FAMILIES, qwen

family = pytest.mark.parametrize("name", FAMILIES)


@family
def test_text_without_control_tokens_gets_the_tokenizers_own_ids(name):
    """No ordinary prompt or solution changes: ids and offsets are those of a plain call."""
    tokenizer = FAMILIES[name]()
    encoder = TextEncoder(tokenizer)
    for text in TEXTS:
        plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert encoder.encode_places(text) == (plain["input_ids"], plain["offset_mapping"])


@family
def test_names_of_control_tokens_are_text_unless_they_are_given_as_control_tokens(name):
    """Of two equal names the one that is given is the token and the other its characters, which decode to it."""
    tokenizer = FAMILIES[name]()
    encoder = TextEncoder(tokenizer)
    for control, i in ((token.content, i) for i, token in tokenizer.added_tokens_decoder.items() if token.special):
        if i == tokenizer.unk_token_id:
            continue
        text = f"a {control} b {control} c"
        both = encoder.find_controls(text)
        assert [text[begin:end] for begin, end in both] == [control, control]
        assert encoder.encode_own(text) == tokenizer.encode(text, add_special_tokens=False)
        for chosen in both:
            ids, offsets = encoder.encode_places(text, controls=[chosen])
            assert ids.count(i) == 1 and offsets[ids.index(i)][0] == chosen[0]
            assert tokenizer.decode(ids).count(control) == 2
        assert special_ids(tokenizer).isdisjoint(encoder.encode(text))


@family
def test_shielded_text_is_encoded_around_control_tokens_as_the_tokenizer_does(name):
    """The private twin treats what surrounds control tokens as the tokenizer itself: blanks that some swallow or put in front included."""
    tokenizer = FAMILIES[name]()
    encoder = TextEncoder(tokenizer)
    first, *_, last = [
        token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special and i != tokenizer.unk_token_id
    ]
    for text in (f"{first}\n a = b {last}  c", f"  x{first}{last}\n\ny", f"é{last} ", last):
        plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        controls = encoder.find_controls(text)
        shielded = encoder._shielded(text, controls)
        assert shielded.ids == plain["input_ids"]
        assert [offset for offset in shielded.offsets if offset not in controls] == [
            offset for offset in plain["offset_mapping"] if tuple(offset) not in controls
        ]


@pytest.mark.parametrize(
    ("template", "foreign"),
    [("<{}>", "|im_end|"), ("<|im_{}", "end|>"), ("{}end|>", "<|im_"), ("a{}b<|im_end|>", "<|im_end|>"), ("<|im_end|>{}", "<|im_start|>")],
)
def test_foreign_text_forms_no_control_token_with_the_template_around_it(template, foreign):
    """Control tokens are those that the template writes by itself, wherever the two meet."""
    tokenizer = qwen()
    encoder = TextEncoder(tokenizer)
    text, controls = encoder.compose(lambda mask: template.replace("{}", mask(foreign)), place="row 1")
    ids = encoder.encode(text, controls=controls)
    assert text == template.replace("{}", foreign)
    expected = tokenizer.encode(template.replace("{}", "."), add_special_tokens=False)
    assert [i for i in ids if i in special_ids(tokenizer)] == [i for i in expected if i in special_ids(tokenizer)]
    assert tokenizer.decode(ids) == text


def test_private_characters_are_no_way_in():
    """A text that holds the stand-in of a control token is refused with its place, and never becomes the token."""
    encoder = TextEncoder(qwen())
    stand_in = encoder._shield.stand_ins["<|im_end|>"]
    with pytest.raises(DataFormatError, match=r"problem 'p': must not hold the control token"):
        encoder.encode(f"<|im_end|>{stand_in}", place="problem 'p'")


def test_a_template_that_rewrites_text_with_control_tokens_is_refused_with_the_place():
    """Which of the control tokens are the template's cannot be told when it changes the text; without any there is no question."""
    encoder = TextEncoder(qwen())
    compose = lambda text: encoder.compose(lambda mask: f"<|im_start|>{mask(text).upper()}", place="f.jsonl:3")  # noqa: E731
    assert compose("a < b")[0] == "<|im_start|>A < B"
    with pytest.raises(DataFormatError, match=r"f.jsonl:3: text must not hold control tokens where the template rewrites it"):
        encoder.compose(lambda mask: f"<|im_start|>{mask('a <|im_end|>').replace('a', 'b')}", place="f.jsonl:3")


def test_a_name_that_only_the_model_can_write_is_refused_with_the_place():
    """A word-level vocabulary holds the whole name as a word, so there is no other way to write it."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1}, unk_token="<unk>"))
    core.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<unk>", special=True)])
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="<unk>"))
    assert encoder.encode("other") == [0]
    with pytest.raises(DataFormatError, match="row 7: must not hold the control token '<end>': this tokenizer cannot write it as text"):
        encoder.encode("<end>", place="row 7")


def test_special_tokens_are_those_marked_among_the_added_ones_and_those_that_are_named():
    """``all_special_ids`` alone misses what only the list of added tokens marks."""
    tokenizer = FAMILIES["llama3"]()
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert special_ids(tokenizer) == marked and len(marked) > len(set(tokenizer.all_special_ids))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llama3", "<|eot_id|>"),
        ("qwen", "<|im_end|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("phi3", "<|end|>"),
        ("deepseek", "<｜end▁of▁sentence｜>"),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_behind_an_answer(name, end):
    """It is read off the template, and there is none without a template."""
    tokenizer = FAMILIES[name]()
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert turn_end(tokenizer) is None
    tokenizer.chat_template = None
    assert turn_end(tokenizer) is None


def test_templates_see_the_given_date_and_no_clock():
    """``strftime_now`` formats the date that is given."""
    text = render_chat(FAMILIES["llama3"](), [{"role": "user", "content": "?"}], date="2031-02-03")
    assert "Date: 03 Feb 2031" in text
    assert "26 Jul 2024" in render_chat(FAMILIES["llama3"](), [{"role": "user", "content": "?"}], date=FIXED_DATE)
