"""``solve`` when requests fail: what is counted, what is shown, which exit code, and what the same command asks again."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.policy.prompts import StepFormat
from tests.misbehaviour import DEADLINE_S, KEY, MISBEHAVIOURS, Misbehaviour, misbehave
from tests.models import save_tiny_policy
from tests.servers import FakeServer, http_reply, serving

LONG = "1+1=" * 200
"""A question beyond the context of the tiny policy."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a policy whose solutions end with any digit."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=256)
    StepFormat(answer_pattern=r"(\d)").save(folder)
    return folder


def _solve(model: Path, *arguments: str, url: str | None = None) -> Result:
    chosen = ["--policy", str(model), "--method", "mcts", "--simulations", "4", "--set", "search.max_step_tokens=8"]
    if url is not None:
        settings = {"url": url, "retries": 1, "backoff_s": 0.001, "timeout_s": DEADLINE_S, "api_key_env": "THE_KEY"}
        chosen += ["--set", "policy.backend=openai"]
        chosen += [word for name, value in settings.items() for word in ("--set", f"policy.openai.{name}={value}")]
    return CliRunner().invoke(app, ["solve", *arguments, *chosen], env={"THE_KEY": KEY})


def _questions(folder: Path, *questions: str) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"id": f"q{i}", "question": question}) + "\n" for i, question in enumerate(questions)))
    return path


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_question_that_does_not_fit_the_context_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the lengths and exit code 2, before the weights are loaded; as JSON, too."""
    monkeypatch.setattr("stepladder.lm.loading.load_causal_lm", None)
    for words in ([], ["--json"]):
        done = _solve(model, LONG, *words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "error: QUESTION: a prompt must leave room for a solution in the 256 tokens that" in done.stderr
        # Four characters, 200 times, and a line break.
        assert "the longest has 801 --" in done.stderr


@pytest.mark.parametrize("backend", ["transformers", "openai"])
def test_questions_of_which_none_fits_are_refused(model: Path, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a file and for standard output, before the weights are loaded; nothing is written."""
    monkeypatch.setattr("stepladder.lm.loading.load_causal_lm", None)
    source, output = _questions(tmp_path, LONG, LONG + "1"), tmp_path / "answers.jsonl"
    with serving(FakeServer()) as url:
        for name, target in ((str(source), str(output)), ("questions", "-")):
            done = _solve(model, "--input", str(source), "--output", target, url=url if backend == "openai" else None)
            assert (done.exit_code, done.stdout) == (2, "")
            assert f"error: {name}: a prompt must leave room for a solution in the 256 tokens that" in done.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_a_question_that_failed_is_counted_and_asked_again_alone(model: Path, tmp_path: Path) -> None:
    """The row says why; the other rows are kept, and the same command asks the failed question only."""
    output = tmp_path / "answers.jsonl"
    source = _questions(tmp_path, "1+2", LONG, "2+2")
    done = _solve(model, "--input", str(source), "--output", str(output))
    assert done.exit_code == 0
    assert "3 questions, 2 answered, 1 failed," in done.stdout
    assert "the first with: prefix must" in done.stdout and "repeat the command" in done.stdout
    first, failed, last = _rows(output)
    assert failed["error"].startswith("prefix must") and failed["failed_samples"] == failed["samples"]
    assert first["error"] is None and first["failed_samples"] == 0
    again = _solve(model, "--input", str(source), "--output", str(output))
    assert again.exit_code == 1 and "1 failed" in again.stdout and "must be asked: all" in again.stderr
    assert _rows(output) == [first, failed, last]


_THROUGH_THE_COMMAND = (
    *("501", "400 that repeats the key", "400 with bytes that are no text", "429", "500", "204 without a body"),
    *("404", "a redirect to another host", "503"),
    *("a page", "cut JSON", "200,000 lists in each other", "bytes that are not UTF-8"),
    *("two choices", "an odd reason", "above 0", "one NaN", "an id beyond the vocabulary", "an id of text"),
    *("usage of text", "cached tokens of text", "hangs up", "hangs up in a chunk", "sends a byte now and then", "a gigabyte"),
    *("64 megabytes in gzip", "HTTP/1.0", "small chunks", "usage null"),
    *("an entry without id", "a context of text", "a context below 0", "two models"),
)


@pytest.mark.parametrize(
    "behaviour",
    [behaviour for behaviour in MISBEHAVIOURS if behaviour.name in _THROUGH_THE_COMMAND],
    ids=lambda behaviour: f"{behaviour.kind}: {behaviour.name}",
)
def test_the_command_takes_misbehaviour_as_the_backend_does(model: Path, tmp_path: Path, behaviour: Misbehaviour) -> None:
    """An answer and exit code 0, or one sentence and exit code 1; the same command with a sound server then ends as if undisturbed."""
    source, output, whole = _questions(tmp_path, "1+2", "2+2"), tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    fake = FakeServer()
    with serving(fake) as url:
        misbehave(behaviour, fake)
        done = _solve(model, "--input", str(source), "--output", str(output), url=url)
    assert done.exit_code == (0 if behaviour.ends == "answer" else 1), done.output
    assert "Traceback" not in done.output and KEY not in done.output and "\x1b" not in done.output
    assert done.stderr.count("error: ") == (behaviour.ends != "answer")
    if behaviour.ends == "sample":
        assert "2 questions, 0 answered, 2 failed" in done.stdout
        assert all(row["error"] and KEY not in row["error"] for row in _rows(output))
    if behaviour.ends == "command":
        assert not output.exists()
    with serving(FakeServer()) as url:
        again = ["--overwrite"] if behaviour.ends == "answer" else []
        assert _solve(model, "--input", str(source), "--output", str(output), *again, url=url).exit_code == 0
        assert _solve(model, "--input", str(source), "--output", str(whole), url=url).exit_code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_server_that_fails_for_a_while_costs_only_the_questions_it_failed(model: Path, tmp_path: Path) -> None:
    """A server that refuses one question loses that one; the next call asks it and nothing else."""
    source, output = _questions(tmp_path, "1+2", "2+2", "3+3"), tmp_path / "answers.jsonl"
    fake = FakeServer()
    prompts: list[tuple[int, ...]] = []

    def refuse_one(path, request):
        if request is None:
            return None
        prompts.append(tuple(request["prompt"][:3]))
        return [http_reply("no", status="400 Bad Request")] if prompts[-1] == prompts[0] else None

    fake.raw = refuse_one
    with serving(fake) as url:
        done = _solve(model, "--input", str(source), "--output", str(output), url=url)
    assert done.exit_code == 0 and "1 failed" in done.stdout and "status 400: no" in done.stdout
    second = FakeServer()
    with serving(second) as url:
        done = _solve(model, "--input", str(source), "--output", str(output), url=url)
    assert done.exit_code == 0 and "3 questions, 3 answered," in done.stdout
    assert {tuple(request["prompt"][:3]) for request in second.requests} == {prompts[0]}


def test_what_ends_a_search_is_named(model: Path) -> None:
    """A cap on tokens, which is not exceeded, and is the remedy where it cut every sample."""
    done = _solve(model, "1+2", "--tokens", "3")
    assert done.exit_code == 0
    assert int(done.stdout.split("mcts: ")[1].split()[0]) <= 3
    assert "ended by the cap of 3 tokens" in done.stdout and "raise --tokens" in done.stdout
