"""A chat template that prints a date: a run keeps the day on which it began."""

import io
import json

import pytest
from rich.console import Console

from stepladder.commands import evolve as command
from stepladder.lm import chat
from stepladder.loops.assembly.policies import build_renderer, with_date
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.types import Problem
from tests.runs import write_tiny_config

TEMPLATE = "{{ strftime_now('%d %m %Y') }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }}<eos>{% endfor %}"


class _Stopped(Exception):
    """The run was opened and is left before its first round."""


def _start(config, root, monkeypatch):
    def stop(*_, **__):
        raise _Stopped

    monkeypatch.setattr(command, "open_workers", stop)
    with pytest.raises(_Stopped):
        command.evolve(config, root, display=ProgressDisplay(Console(file=io.StringIO())), on_round=lambda row: None)


def _on(monkeypatch, day):
    class Fixed(chat.Date):
        @classmethod
        def today(cls):
            return cls.fromisoformat(day)

    monkeypatch.setattr(chat, "Date", Fixed)


@pytest.fixture
def path(tmp_path):
    """A tiny configuration whose model has a chat template that prints the date."""
    path = write_tiny_config(tmp_path / "config")
    settings = tmp_path / "config" / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
    return path


def test_a_run_goes_on_on_another_day_with_the_prompts_of_its_first(path, tmp_path, monkeypatch):
    """The date is in run.json, the renderer and its hash are those of the first day, and the same command continues."""
    config = load_config(path, ["format.chat=true"])
    _on(monkeypatch, "2026-11-26")
    _start(config, tmp_path / "run", monkeypatch)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["config"]["format"]["date"] == "2026-11-26"
    first = build_renderer(with_date(config, config.policy.model, earlier=None), config.policy.model)
    _on(monkeypatch, "2026-11-27")
    _start(config, tmp_path / "run", monkeypatch)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == facts
    again = build_renderer(load_run(tmp_path / "run").config(), config.policy.model)
    fresh = build_renderer(config, config.policy.model)
    problem = Problem(id="p", question="1+1")
    assert (again.hash, again.prompt_ids(problem)) == (first.hash, first.prompt_ids(problem))
    assert fresh.hash != first.hash and fresh.prompt_ids(problem) != first.prompt_ids(problem)


def test_settings_without_a_date_are_written_as_before(path, tmp_path, monkeypatch):
    """Neither a run without a chat nor a template without a date gets one, so that hashes and files do not change."""
    plain = load_config(path, [])
    assert "date" not in plain.model_dump()["format"] and with_date(plain, plain.policy.model, earlier=None) is plain
    settings = tmp_path / "config" / "model" / "tokenizer_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE.replace("strftime_now('%d %m %Y')", "''")})
    )
    chatted = load_config(path, ["format.chat=true"])
    assert with_date(chatted, chatted.policy.model, earlier=None).hash() == chatted.hash()
