"""Configurations that cannot be: one sentence with its place, exit code 2, before anything is written."""

import json

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from tests.models import save_tiny_policy

GOOD = '[problems]\ntrain = "in.jsonl"\ntest = "test.jsonl"\nheld_out_size = 1\n[policy]\nmodel = "model"\n'
FILES = {
    "not TOML": "][",
    "an open table": "[problems",
    "a key without a value": "[problems]\ntrain =",
    "a key twice": "[problems]\ntrain = 'a'\ntrain = 'b'\n",
    "nested too deep": "a = " + "[" * 5000 + "]" * 5000,
    "tables too deep": "[" + ".".join(["a"] * 3000) + "]\nb = 1",
    "a number too long": "a = " + "9" * 10_000,
    "empty": "",
    "only a comment": "# nothing",
    "a section as a number": "problems = 3\n[policy]\nmodel = 'model'",
    "a section as a list": "problems = []\n[policy]\nmodel = 'model'",
    "no problems": "[policy]\nmodel = 'model'",
    "no policy": "[problems]\ntrain = 'in.jsonl'\ntest = 'test.jsonl'",
    "an unknown section": GOOD + "[serach]\nsimulations = 3",
    "an unknown key": GOOD + "[search]\nsimulation = 3",
    "control characters": GOOD + '[search]\nmethod = "a\\u001b]52;c;x\\u0007"',
}
SETTINGS = [
    "run.seed=-1", "run.seed=1.5", "run.seed=a", "run.seed=nan", "run.seed=[1]", "run.rounds=-1", "run.shard_size=0",
    "run.workers=-2", "run.threads=0", "problems.train=nowhere.jsonl", "problems.train=.", "problems.test=in.jsonl",
    "problems.train=[]", "problems.held_out_size=0", "problems.held_out_size=100", "problems.rule=fuzzy", "problems.id_field=nope",
    "problems.question_field=nope", "problems.answer_field=nope", "problems.answer_pattern=(((", "problems.deadline_s=0",
    "problems.deadline_s=nan", "problems.verifier=nope", "problems.verifier=nope:grade", "problems.verifier=os:nope",
    "problems.train_limit=0", "format.prompt_template=no place", "format.step_end=", "format.answer_pattern=(((",
    "format.answer_pattern=no group", "format.chat=perhaps", "policy.model=./nowhere", "policy.model=in.jsonl",
    "policy.backend=magic", "policy.backend=vllm", "policy.backend=openai", "policy.device=tpu", "policy.device=cuda:x",
    "policy.dtype=int3", "policy.max_batch=0", "policy.vllm.memory_share=2", "policy.vllm.memory_share=0",
    "policy.openai.timeout_s=-1", "prm.model=./nowhere", "prm.loss=magic", "prm.target=magic", "prm.ensemble=0", "prm.start=fixed",
    "prm.loss.type=bce", "search.method=magic", "search.simulations=0", "search.num_children=8", "search.options.num_children=0",
    "search.options.nope=1", "search.options.wave=1000000", "search.max_depth=0", "search.max_step_tokens=0",
    "search.scores.check=magic", "search.scores.bound.at=3", "labels.pairs=magic", "labels.pairs.critic_weight=0.5",
    "labels.traces_per_problem=0", "labels.revision_text=hm", "preference.loss=magic", "preference.loss.beta=0",
    "preference.loss.target_margin=1", "preference.learning_rate=0", "sft.batch_size=0", "sft.lora.r=0", "sft.held_out=0.5",
    "warmup.solutions=nowhere.jsonl", "evaluate.method=magic", "evaluate.temperature=0", "evaluate.aggregation=median",
    "gate.max_drop=2", "training.num_processes=0", "training.accelerate_config=nowhere.yaml", "training.report_to=[\"diary\"]",
    "start_from=yesterday", "nothing=1", "=1", "search", "search.=1", ".search=1", "search.simulations.more=1",
]  # fmt: skip
HARMLESS = {"prm.loss.type=bce"}
"""Allowed after all: what shows that the table can tell the difference."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with two problem files and the beginning of a model."""
    monkeypatch.chdir(tmp_path)
    for name, ids in (("in.jsonl", "ab"), ("test.jsonl", "c")):
        rows = [{"id": each, "question": f"1+{each}?", "answer": "2"} for each in ids]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "c.toml").write_text(GOOD)
    return tmp_path


def check(place, *words):
    """Run ``evolve``, with and without ``--dry-run``: one sentence, exit code 2, and nothing written."""
    before = sorted(place.rglob("*"))
    for more in (["--dry-run"], []):
        done = CliRunner().invoke(app, ["evolve", "c.toml", "--run-dir", "R", *words, *more])
        assert isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert len(done.stderr) < 1000, done.stderr
        assert "\x1b" not in done.stderr
        assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_one_sentence(place, name):
    """Damaged, incomplete or foreign."""
    (place / "c.toml").write_text(FILES[name])
    check(place)


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting not in HARMLESS])
def test_a_setting_that_cannot_be_is_one_sentence(place, setting):
    """Out of range, of another type, unknown, of another variant, or of a file that is not there."""
    check(place, "--set", setting)


def test_places_that_hold_no_configuration_are_one_sentence(place):
    """A directory, nothing at all, and a file of bytes."""
    (place / "c.toml").unlink()
    check(place)
    (place / "c.toml").write_bytes(b"\xff\xfe\x00")
    check(place)
    (place / "c.toml").unlink()
    (place / "c.toml").mkdir()
    check(place)


FUNCTIONS = {
    "problems.verifier=task.py:grade_none": "must return True or False, a number in [0, 1], a Verdict, or (one of these, reason)",
    "problems.verifier=task.py:grade_text": "must return True or False, a number in [0, 1], a Verdict, or (one of these, reason)",
    "format.prompt=task.py:prompt_none": "must return a text: got NoneType",
    "format.prompt=task.py:prompt_two": "must make a prompt of a question: it raised TypeError",
    "format.steps=task.py:ends_text": "must return True or False: got 'yes' of type str",
    "format.steps=task.py:ends_raises": "must say whether a step ends: it raised IndexError",
}
TASK = """
def grade_none(answer, reference): return None
def grade_text(answer, reference): return "right"
def grade_raises(answer, reference): raise ValueError("this answer is wrong")
def prompt_none(question): return None
def prompt_two(question, more): return question
def ends_text(text): return "yes"
def ends_raises(text): return text[7] == "."
"""


@pytest.mark.parametrize("setting", FUNCTIONS)
def test_a_function_that_cannot_work_is_refused_before_any_work(place, setting):
    """After the warm-up it would cost the whole run: a changed function is another run."""
    save_tiny_policy(place / "model")
    (place / "task.py").write_text(TASK)
    check(place, "--set", setting)
    done = CliRunner().invoke(app, ["evolve", "c.toml", "--run-dir", "R", "--set", setting, "--dry-run"])
    assert FUNCTIONS[setting] in done.stderr


def test_a_verifier_may_raise(place):
    """What it is tried on may be a wrong answer."""
    save_tiny_policy(place / "model")
    (place / "task.py").write_text(TASK)
    setting = "problems.verifier=task.py:grade_raises"
    done = CliRunner().invoke(app, ["evolve", "c.toml", "--run-dir", "R", "--set", setting, "--dry-run"])
    assert done.exit_code == 0, done.output


def test_the_table_starts_from_settings_that_are_fine(place):
    """Without a fault ``--dry-run`` accepts them, so each refusal is of the fault."""
    save_tiny_policy(place / "model")
    for setting in HARMLESS:
        done = CliRunner().invoke(app, ["evolve", "c.toml", "--run-dir", "R", "--set", setting, "--dry-run"])
        assert done.exit_code == 0, done.output
