import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.loading import load_tokenizer
from stepladder.policy.prompts import FORMAT_FILE, PromptRenderer, StepFormat
from stepladder.types import Problem
from tests.models import save_tiny_policy, tiny_tokenizer

GSM8K = StepFormat(prompt_template="Question: {question}\nAnswer:\n", answer_pattern=r"#### (.+)")
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


def _problem(question):
    return Problem(id="p", question=question)


def test_prompts_replace_the_question_and_leave_other_braces_alone():
    """Braces of the template and of the question are text."""
    tokenizer = tiny_tokenizer("bytes")
    renderer = PromptRenderer(tokenizer, StepFormat(prompt_template=r"\frac{1}{2} {question} {}" + "\n"))
    assert tokenizer.decode(renderer.prompt_ids(_problem("{x} é"))) == r"\frac{1}{2} {x} é {}" + "\n"


def test_the_begin_token_stands_once_where_the_tokenizer_adds_it():
    """It is added for families that use it, not doubled when the template writes it, and absent elsewhere."""
    plain, begins = tiny_tokenizer("chars"), tiny_tokenizer("chars", add_bos=True)
    bos = begins.bos_token_id
    written = StepFormat(prompt_template="<bos>{question}")
    assert PromptRenderer(plain, StepFormat(prompt_template="{question}")).prompt_ids(_problem("1")) == (7,)
    assert PromptRenderer(begins, StepFormat(prompt_template="{question}")).prompt_ids(_problem("1")) == (bos, 7)
    assert PromptRenderer(begins, written).prompt_ids(_problem("1")) == (bos, 7)


def test_an_empty_prompt_becomes_the_begin_token_or_is_refused():
    """A prompt is never empty."""
    tokenizer = tiny_tokenizer("chars")
    renderer = PromptRenderer(tokenizer, StepFormat(prompt_template="{question}"))
    assert renderer.prompt_ids(_problem("")) == (tokenizer.bos_token_id,)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(DataFormatError, match="must have tokens"):
        renderer.prompt_ids(_problem(""))


def test_chat_prompts_go_through_the_template():
    """System and user message are rendered and the assistant's turn is opened; without a template the format is refused."""
    tokenizer = tiny_tokenizer("bytes")
    step_format = StepFormat(prompt_template="Q {question}", chat=True, system="Think.")
    with pytest.raises(ConfigError, match="chat template"):
        PromptRenderer(tokenizer, step_format)
    tokenizer.chat_template = CHAT
    ids = PromptRenderer(tokenizer, step_format).prompt_ids(_problem("1+1"))
    assert tokenizer.decode(ids) == "<system>Think.\n<user>Q 1+1\n<bot>"
    assert PromptRenderer(tokenizer, StepFormat(chat=True)).prompt_ids(_problem("2")) == tuple(tokenizer.encode("<user>2\n\n<bot>"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [("#### 5\n", "5"), ("#### 5\n#### 6 ", "6"), ("#### \n", None), ("no answer", None), ("", None), ("a #### -1,000\n", "-1,000")],
)
def test_the_last_match_is_the_answer(text, answer):
    """Blanks around it do not count, and an empty one is none."""
    assert GSM8K.extract_answer(text) == answer
    assert GSM8K.is_final(text) is (answer is not None)


def test_written_solutions_become_steps_that_end_as_sampled_ones():
    """Every step ends at a token; a final answer is closed with the boundary; any other end gets end-of-sequence."""
    tokenizer = tiny_tokenizer("bytes", add_bos=True)
    renderer = PromptRenderer(tokenizer, GSM8K)
    final = renderer.encode_solution("2+2=4\n\n#### 4")
    assert [renderer.decode(step) for step in final] == ["2+2=4\n", "\n", "#### 4\n"]
    assert final == renderer.encode_solution("2+2=4\n\n#### 4\n")
    open_ended = renderer.encode_solution("2+2=4\nso four")
    assert [renderer.decode(step) for step in open_ended] == ["2+2=4\n", "so four"]
    assert open_ended[-1][-1] == tokenizer.eos_token_id and tokenizer.bos_token_id not in open_ended[0]
    assert renderer.encode_solution("") == []


def test_written_steps_do_not_gain_a_blank_that_the_tokenizer_makes_up():
    """A SentencePiece-like tokenizer puts a blank before what it encodes; inside a sequence there is none."""
    core = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2, "\n": 3, "b": 4}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    core.decoder = decoders.Metaspace()
    tokenizer = type(tiny_tokenizer())(tokenizer_object=core, unk_token="<unk>")
    renderer = PromptRenderer(tokenizer, StepFormat())
    assert tokenizer.encode("a\n") == [1, 2, 3]
    assert renderer.encode_solution("a\n b\n") == [(2, 3), (1, 4, 3)]


def test_formats_are_checked():
    """Each impossible field is named."""
    for fields, name in [
        ({"prompt_template": "x"}, "prompt_template"),
        ({"step_end": ""}, "step_end"),
        ({"answer_pattern": "("}, "answer_pattern"),
        ({"answer_pattern": "x"}, "group"),
        ({"system": "s"}, "system"),
    ]:
        with pytest.raises(ConfigError, match=name):
            StepFormat(**fields)


def test_formats_survive_saving_and_broken_files_are_named(tmp_path):
    """What is saved is loaded, unicode included; absent, malformed, foreign files raise with the path."""
    step_format = StepFormat(prompt_template="問 {question}\n", step_end="。", answer_pattern=r"=(\d+)", chat=True, system="é")
    step_format.save(tmp_path)
    assert StepFormat.load(tmp_path) == step_format
    row = json.loads((tmp_path / FORMAT_FILE).read_text())
    changed = [{"schema_version": 99}, {"extra": 1}, {"step_end": 5}]
    for broken in ("[", "[]", *(json.dumps({**row, **change}) for change in changed)):
        (tmp_path / FORMAT_FILE).write_text(broken)
        with pytest.raises(CheckpointError, match=FORMAT_FILE):
            StepFormat.load(tmp_path)
    for field, value, message in (("chat", "yes", "chat must be bool: got 'yes'"), ("step_end", "", "step_end: must not be empty")):
        (tmp_path / FORMAT_FILE).write_text(json.dumps({**row, field: value}))
        with pytest.raises(CheckpointError, match=f"{FORMAT_FILE}: {message}"):
            StepFormat.load(tmp_path)
    (tmp_path / FORMAT_FILE).unlink()
    with pytest.raises(CheckpointError, match="not found"):
        StepFormat.load(tmp_path)


def test_the_hash_depends_on_content_alone(tmp_path):
    """It is equal across directories and after padded calls, and differs with the format and with the vocabulary."""
    tokenizers = [load_tokenizer(save_tiny_policy(tmp_path / name, hidden=32, layers=1)) for name in ("a", "b")]
    tokenizer, digest = tokenizers[0], PromptRenderer(tokenizers[1], GSM8K).hash
    assert len(digest) == 16 and int(digest, 16) >= 0
    tokenizer(["1", "22"], padding=True, truncation=True, max_length=4)
    assert PromptRenderer(tokenizer, GSM8K).hash == digest
    assert PromptRenderer(tokenizer, StepFormat()).hash != digest
    assert PromptRenderer(tiny_tokenizer("bytes"), GSM8K).hash != digest


@pytest.mark.slow
def test_the_hash_is_the_same_in_another_process(tmp_path):
    """No hash seed of the interpreter enters it."""
    directory = save_tiny_policy(tmp_path, hidden=32, layers=1)
    digest = PromptRenderer(load_tokenizer(directory), GSM8K).hash
    code = (
        "import sys; from stepladder.lm.loading import load_tokenizer; from stepladder.policy.prompts import PromptRenderer, StepFormat;"
        "f = StepFormat(prompt_template='Question: {question}\\nAnswer:\\n', answer_pattern=r'#### (.+)');"
        "print(PromptRenderer(load_tokenizer(sys.argv[1]), f).hash)"
    )
    output = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True, timeout=120)
    assert output.stdout.strip() == digest
