import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.interfaces import StepRequest
from stepladder.lm import chat as templates
from stepladder.lm.chat import render_chat
from stepladder.lm.encoding import special_ids
from stepladder.lm.loading import load_tokenizer
from stepladder.policy.backends.steps import OpenSample, StepRules
from stepladder.policy.prompts import FORMAT_FILE, PromptRenderer, StepFormat
from stepladder.testing.texts import TEXTS
from stepladder.types import Problem
from tests.models import save_tiny_policy, tiny_tokenizer
from tests.tokenizer_families import FAMILIES

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


@pytest.mark.parametrize("chat", [False, True])
def test_a_variant_stands_around_the_plain_prompt(chat):
    """Names of placeholders and of control tokens in a question are text; the plain renderer and the hash stay what they were."""
    tokenizer = tiny_tokenizer("bytes")
    tokenizer.chat_template = CHAT if chat else None
    plain = PromptRenderer(tokenizer, StepFormat(prompt_template="Q {question}\n", chat=chat))
    before = plain.prompt_ids(_problem("{prompt}<eos>"))
    variant = plain.variant("{prompt}of {question}: ask\n")
    text = "Q {prompt}<eos>\nof {prompt}<eos>: ask\n"
    assert tokenizer.decode(variant.prompt_ids(_problem("{prompt}<eos>"))) == (f"<user>{text}\n<bot>" if chat else text)
    assert variant.hash == plain.hash and plain.prompt_ids(_problem("{prompt}<eos>")) == before
    assert tokenizer.eos_token_id not in variant.prompt_ids(_problem("{prompt}<eos>"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [("#### 5\n", "5"), ("#### 5\n#### 6 ", "6"), ("#### \n", None), ("no answer", None), ("", None), ("a #### -1,000\n", "-1,000")],
)
def test_the_last_match_is_the_answer(text, answer):
    """Blanks around it do not count, and an empty one is none."""
    assert GSM8K.extract_answer(text) == answer
    assert GSM8K.is_final(text) is (answer is not None)


def test_boxes_are_read_by_default():
    """Braces are balanced, the last box counts, and neither blanks nor a box that the question holds end a solution."""
    default = StepFormat()
    assert default.extract_answer("So $\\boxed{\\frac{1}{2}}$, since $2^{2}=4$.") == "\\frac{1}{2}"
    assert default.is_final("It is \\boxed{7}.\n")
    assert not default.is_final("Put it into \\boxed{}.\n")
    question = "Let \\boxed{n} be the sum of the factors of n. Find \\boxed{20}."
    assert not default.is_final("We want \\boxed{20}.\n", question)
    assert default.is_final("So it is \\boxed{42}.\n", question)
    assert GSM8K.is_final("#### 20", question)


def test_a_pattern_of_old_files_is_kept(tmp_path):
    """A format saved with its pattern reads by that pattern; one without reads boxes."""
    for pattern in (None, "= (.*)"):
        StepFormat(answer_pattern=pattern).save(tmp_path)
        assert StepFormat.load(tmp_path).answer_pattern == pattern


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
    surprising = StepFormat(steps="surprise", step_surprise=4)
    surprising.save(tmp_path)
    assert StepFormat.load(tmp_path) == surprising
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
    with pytest.raises(CheckpointError, match="there is no such file"):
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


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_of_ordinary_questions_are_what_the_tokenizer_makes_of_the_whole_text(name, chat):
    """Nothing changes where a question holds no control token; the template's own control tokens are tokens."""
    tokenizer = FAMILIES[name]()
    renderer = PromptRenderer(tokenizer, StepFormat(prompt_template="Q: {question}\n", chat=chat, date="2026-01-02"))
    for question in TEXTS:
        text, ids = f"Q: {question}\n", renderer.prompt_ids(_problem(question))
        if chat:
            messages = [{"role": "user", "content": text}]
            assert list(ids) == tokenizer.encode(
                render_chat(tokenizer, messages, date="2026-01-02", open_turn=True), add_special_tokens=False
            )
        else:
            assert list(ids) == tokenizer.encode(text)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_question_and_no_solution_adds_a_control_token(name, chat):
    """Every name of a control token is text there, and role names that are not special are text in the questions of a chat."""
    tokenizer = FAMILIES[name]()
    renderer = PromptRenderer(tokenizer, StepFormat(step_end="\n\n", chat=chat))
    plain = renderer.prompt_ids(_problem("?"))
    roles = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content.startswith("<｜")}
    controls = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | (roles if chat else {})
    watched = set(controls.values()) - {tokenizer.unk_token_id}
    for control in controls:
        ids = renderer.prompt_ids(_problem(f"Is {control} it? {control}"))
        assert [i for i in ids if i in watched] == [i for i in plain if i in watched]
        steps = renderer.encode_solution(f"It is {control} = 3.\n\nso")
        assert [i for step in steps for i in step if i in special_ids(tokenizer)] == [renderer.end_id]
        assert "".join(map(renderer.decode, steps)) == f"It is {control} = 3.\n\nso"


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
@pytest.mark.parametrize("template", ["{bos}{question}", "\n{bos}{question}", "Solve.{bos} {question}"])
def test_the_begin_token_stands_once_wherever_the_template_writes_it(name, template):
    """None is added to a template that has one; a question that spells it adds none and takes none away."""
    tokenizer = FAMILIES[name]()
    renderer = PromptRenderer(tokenizer, StepFormat(prompt_template=template.replace("{bos}", tokenizer.bos_token)))
    for question in ("1", f"{tokenizer.bos_token}1"):
        assert renderer.prompt_ids(_problem(question)).count(tokenizer.bos_token_id) == 1
    plain = PromptRenderer(tokenizer, StepFormat(prompt_template="{question}"))
    assert plain.prompt_ids(_problem(f"{tokenizer.bos_token}1")).count(tokenizer.bos_token_id) == 1


def test_role_names_that_a_plain_template_writes_are_text_in_questions():
    """They are added tokens that are not special; in a solution, tokens of that kind stay tokens."""
    tokenizer = FAMILIES["deepseek"]()
    roles = [tokenizer.convert_tokens_to_ids(name) for name in ("<｜User｜>", "<｜Assistant｜>")]
    renderer = PromptRenderer(tokenizer, StepFormat(prompt_template="<｜User｜>{question}<｜Assistant｜>"))
    ids = renderer.prompt_ids(_problem("<｜User｜>2<｜Assistant｜>"))
    assert [i for i in ids if i in roles] == roles
    assert tokenizer.convert_tokens_to_ids("<think>") in renderer.encode_steps("<think>a")[0]


def test_a_prompt_stays_open_and_a_solution_ends_once_with_a_tokenizer_that_closes_what_it_encodes():
    """Its end token is not part of a prompt, and a solution has one."""
    tokenizer = FAMILIES["llama3"]()
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)]
    )
    renderer = PromptRenderer(tokenizer, StepFormat())
    ids = renderer.prompt_ids(_problem("1"))
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    (step,) = renderer.encode_solution("so four")
    assert step.count(tokenizer.eos_token_id) == 1 and tokenizer.bos_token_id not in step


@pytest.mark.parametrize("name", FAMILIES)
def test_written_solutions_are_cut_as_the_sampler_cuts_their_tokens(name):
    r"""Fed token by token to the sampler's rules they give the same steps, where "\n\n" and ".\n\n" are single tokens as well."""
    tokenizer = FAMILIES[name]()
    text = "a\n\nb = 2.\n\n\nc\nd\n\n\n\ne"
    for step_end in ("\n\n", "\n", ".", "b ="):
        step_format = StepFormat(step_end=step_end)
        renderer = PromptRenderer(tokenizer, step_format)
        steps = renderer.encode_solution(text)
        ids = [i for step in steps for i in step]
        rules = StepRules(tokenizer, step_format, vocab_size=max(tokenizer.get_vocab().values()) + 1)
        request = StepRequest(ticket=0, prefix_ids=(1,), num_samples=1, seed=0, max_steps=99, max_step_tokens=99)
        sample = OpenSample(rules, request, context=999)
        assert [sample.feed(i, -1.0) for i in ids] == [False] * (len(ids) - 1) + [True]
        assert [step.token_ids for step in sample.steps] == steps
        assert "".join(step.text for step in sample.steps) == text


def test_line_breaks_that_are_one_token_close_one_step():
    r"""``a\n\nb\n\n`` under the boundary "\n": "\n\n" is one token, so no step holds a line break alone; the end is a step of its own."""
    tokenizer = FAMILIES["qwen"]()
    renderer = PromptRenderer(tokenizer, StepFormat(answer_pattern="=(.)"))
    assert [renderer.decode(step) for step in renderer.encode_steps("a\n\nb\n\n")] == ["a\n\n", "b\n\n"]
    assert renderer.encode_solution("a\n\nb\n\n") == [*renderer.encode_steps("a\n\nb\n\n"), (tokenizer.eos_token_id,)]
    assert [renderer.decode(step) for step in renderer.encode_solution("a.\n\nb=3")] == ["a.\n\n", "b=3\n"]


def test_a_solution_that_ends_with_the_text_of_an_end_token_is_refused_with_its_place():
    """It would be learned as text, with the token behind it; inside a solution it is text."""
    renderer = PromptRenderer(FAMILIES["qwen"](), StepFormat(chat=True))
    for text in ("so 4<|im_end|>", "so 4\n<|endoftext|>\n"):
        with pytest.raises(DataFormatError, match=r"solution 's1': a solution must not end with the end token"):
            renderer.encode_solution(text, place="solution 's1'")
    assert renderer.encode_solution("the token <|im_end|> ends a turn")[-1][-1] == renderer.end_id


def test_the_end_of_a_chat_solution_is_the_templates_end_of_turn():
    """A base tokenizer's end-of-sequence is another token; without a chat that one ends a solution."""
    tokenizer = FAMILIES["qwen"]()
    chat, plain = (PromptRenderer(tokenizer, StepFormat(chat=chat)) for chat in (True, False))
    assert chat.encode_solution("so")[-1][-1] == chat.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert plain.encode_solution("so")[-1][-1] == plain.end_id == tokenizer.eos_token_id


def test_the_date_of_a_template_is_fixed_and_seen_by_the_hash(monkeypatch, tmp_path):
    """A renderer with a date is the same on every day; without one, the day counts; where no template prints it, it does not matter."""

    class Tomorrow(templates.Date):
        @classmethod
        def today(cls):
            return cls(2040, 1, 2)

    dated, undated = StepFormat(chat=True, date="2026-11-26"), StepFormat(chat=True)
    llama, qwen = FAMILIES["llama3"](), FAMILIES["qwen"]()
    today = [PromptRenderer(llama, dated), PromptRenderer(llama, undated), PromptRenderer(qwen, undated)]
    monkeypatch.setattr(templates, "Date", Tomorrow)
    later = [PromptRenderer(llama, dated), PromptRenderer(llama, undated), PromptRenderer(qwen, undated)]
    assert [old.hash == new.hash for old, new in zip(today, later, strict=True)] == [True, False, True]
    same = [old.prompt_ids(_problem("1")) == new.prompt_ids(_problem("1")) for old, new in zip(today, later, strict=True)]
    assert same == [True, False, True]
    assert "26 Nov 2026" in llama.decode(later[0].prompt_ids(_problem("1"))) and "02 Jan 2040" in llama.decode(
        later[1].prompt_ids(_problem("1"))
    )
    assert today[1].hash != today[0].hash or today[1].date == "2026-11-26"
    dated.save(tmp_path)
    assert StepFormat.load(tmp_path) == dated
    undated.save(tmp_path)
    assert "date" not in json.loads((tmp_path / FORMAT_FILE).read_text())
    with pytest.raises(ConfigError, match=r"date: must have the form YYYY-MM-DD: got '26\.11\.2026'"):
        StepFormat(chat=True, date="26.11.2026")


def test_hashes_of_stored_runs_have_not_changed():
    """Trees of earlier versions carry these: a plain format, and a chat whose template prints no date."""
    tokenizer = tiny_tokenizer("bytes")
    assert PromptRenderer(tokenizer, GSM8K).hash == "c9d6ea72f1f93bd2"
    tokenizer.chat_template = CHAT
    stored = StepFormat(chat=True, system="Think.", answer_pattern=r"\\boxed\{(.*)\}")
    assert PromptRenderer(tokenizer, stored).hash == "c634f2dcf0ba0569"


def test_a_conversation_is_a_prompt():
    """A conversation of one question has the question's prompt; a longer one is rendered as a whole, and a given text stays as it is."""
    renderer = PromptRenderer(tiny_tokenizer(add_bos=True), StepFormat(prompt_template="q: {question}\n"))
    user, system = {"role": "user", "content": "1+1"}, {"role": "system", "content": "be brief"}
    assert renderer.conversation_ids([user]) == renderer.prompt_ids(Problem(id="x", question="1+1"))
    assert renderer.decode(renderer.conversation_ids([system, user])) == "q: be brief\n\n1+1\n"
    assert renderer.decode(renderer.text_ids("1+1=")) == "1+1="
    assert renderer.text_ids("1")[0] == renderer.tokenizer.bos_token_id


def test_a_chat_template_renders_the_turns_of_a_conversation():
    """Roles reach the template, the format's system message goes first unless there is one, and text cannot forge a turn."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    renderer = PromptRenderer(tokenizer, StepFormat(chat=True, system="s", prompt_template="{question}"))
    eos, decode = tokenizer.eos_token_id, tokenizer.decode
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "1<eos>"}]
    ids = renderer.conversation_ids(turns)
    assert decode(ids) == "[system]s<eos>[user]hi<eos>[assistant]ho<eos>[user]1<eos><eos>[a]"
    assert ids.count(eos) == 4
    assert decode(renderer.conversation_ids([{"role": "system", "content": "t"}, turns[0]])).startswith("[system]t<eos>[user]hi")
