"""A wrong diagnosis sends its reader astray: what is named is what is wrong, by what it is, and before any work."""

import json

import pytest
from typer.testing import CliRunner

from stepladder import hub
from stepladder.cli.app import app
from stepladder.policy.prompts import StepFormat
from tests.folders import contents
from tests.models import save_tiny_policy

NO_RUN, NO_FILE, A_FILE = "must be a run: ", "there is no such file", "is a file"

# (command, what is named, words of the cause); `nope` is nothing, `text.txt` no more than a text, `empty` an empty directory.
CASES = [
    # Of two wrong places the one that is read first is named, and never as the other.
    ("prm score nope.jsonl --model ./nope --output out", "nope.jsonl: ", NO_FILE),
    ("prm eval nope.jsonl --model ./nope", "nope.jsonl: ", NO_FILE),
    ("prm train nope.jsonl --init ./nope --output out", "nope.jsonl: ", NO_FILE),
    ("prm train --trees ./nope --init ./nope --output out", "nope: ", "must be a shard of trees"),
    ("grade nope.jsonl", "nope.jsonl: ", NO_FILE),
    ("grade empty", "empty: ", "it is a directory"),
    ("solve --input nope.jsonl --output out --policy ./policy", "nope.jsonl: ", NO_FILE),
    ("eval nope.jsonl --policy ./policy --out out", "nope.jsonl: ", NO_FILE),
    ("import nope --run-dir out --config nope.toml", "nope.toml: ", "no such configuration file"),
    ("evolve --on nope.toml recipe:rstar-math", "nope.toml: ", "no such configuration file"),
    # What is not there is not called unreadable, foreign or damaged.
    ("import nope --run-dir out", "nope: ", "there is no such directory"),
    ("import empty --run-dir out", "empty/README.md: ", NO_FILE),
    ("import text.txt --run-dir out", "text.txt: ", A_FILE),
    ("import hub: --run-dir out", "hub:: ", "must be hub:OWNER/NAME"),
    ("import hub:a/b/c --run-dir out", "hub:a/b/c: ", "must be hub:OWNER/NAME"),
    ("export nope --to out", "nope: ", f"{NO_RUN}there is no such directory"),
    ("export text.txt --to out", "text.txt: ", f"{NO_RUN}it {A_FILE}"),
    ("export empty --to out", "empty: ", "run.json is missing"),
    ("report nope", "nope: ", f"{NO_RUN}there is no such directory"),
    ("report text.txt", "text.txt: ", f"{NO_RUN}it {A_FILE}"),
    ("solve q --run nope", "nope: ", f"{NO_RUN}there is no such directory"),
    ("solve q --run text.txt", "text.txt: ", f"{NO_RUN}it {A_FILE}"),
    ("eval --run nope --out out", "nope: ", f"{NO_RUN}there is no such directory"),
    ("serve --run nope", "nope: ", f"{NO_RUN}there is no such directory"),
    ("evolve nope --from-round 1 --run-dir out", "nope: ", f"{NO_RUN}there is no such directory"),
    ("evolve --run-dir text.txt", "text.txt: ", A_FILE),
    ("evolve empty --run-dir out", "empty: ", "it is a directory"),
    # A file in the place of a model is no hub id, and no question for the network.
    ("solve q --policy text.txt", "policy.model: ", f"'text.txt' {A_FILE}"),
    ("solve q --policy ./text.txt", "policy.model: ", f"'./text.txt' {A_FILE}"),
    ("eval in.jsonl --policy text.txt --out out", "policy.model: ", f"'text.txt' {A_FILE}"),
    ("serve --policy text.txt", "policy.model: ", f"'text.txt' {A_FILE}"),
    ("solve q --policy ./policy --discriminator text.txt", "text.txt: ", f"it {A_FILE}"),
    ("solve q --policy ./policy --discriminator ./nope", "./nope: ", "no such directory"),
    ("prm score solutions.jsonl --model text.txt --spec trl --output out", "text.txt: ", f"it {A_FILE}"),
    ("prm eval solutions.jsonl --model text.txt --spec trl", "text.txt: ", f"it {A_FILE}"),
    ("prm train solutions.jsonl --init text.txt --spec trl --held-out 0 --output out", "text.txt: ", f"it {A_FILE}"),
    # The places of results are looked at before the work, for what they are.
    ("solve --input in.jsonl --output empty --policy ./policy", "--output empty: ", "must be a file: it is a directory"),
    ("solve q --tree empty --policy ./policy", "--tree empty: ", "must be a file: it is a directory"),
    ("prm score solutions.jsonl --model ./policy --spec trl --output empty", "--output empty: ", "must be a file: it is a directory"),
    ("prm eval solutions.jsonl --model ./policy --spec trl --json empty", "--json empty: ", "must be a file: it is a directory"),
    ("prm train solutions.jsonl --init ./policy --spec trl --output nothing.txt", "--output nothing.txt: ", "must be a directory"),
    ("grade answers.jsonl --output empty", "--output empty: ", "must be a file: it is a directory"),
    ("eval in.jsonl --policy ./policy --out text.txt", "text.txt: ", "must be a directory"),
    ("eval in.jsonl --policy ./policy --out text.txt/below", "text.txt/below: ", "must be a directory"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a policy, files that commands read, a text, an empty file and an empty directory."""
    folder = tmp_path_factory.mktemp("causes")
    save_tiny_policy(folder / "policy")
    StepFormat(answer_pattern="([a-d])").save(folder / "policy")
    rows = {
        "in": {"id": "1", "question": "1+1?", "answer": "2"},
        "solutions": {"question": "1+1?", "steps": ["a\n"], "label": 0},
        "answers": {"reference": "1", "answer": "1"},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "text.txt").write_text("years of work")
    (folder / "nothing.txt").touch()
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(("command", "named", "cause"), CASES, ids=[command for command, _, _ in CASES])
def test_the_nearest_cause_is_named(place, monkeypatch, command, named, cause):
    """One sentence, exit code 2, nothing written, and nobody on the network asked."""
    monkeypatch.chdir(place)
    asked = []
    monkeypatch.setattr(hub, "why_unreachable", lambda: asked.append(command) or "not asked")
    before = contents(place)
    done = CliRunner().invoke(app, command.split())
    # A warning of the model's tokenizer may come first.
    said = [line for line in done.stderr.strip().splitlines() if "tokenizer.json is used as it was saved" not in line]
    assert done.exit_code == 2 and len(said) == 1, done.output
    assert said[0].startswith(f"error: {named}") and cause in said[0], said
    assert contents(place) == before and not asked
