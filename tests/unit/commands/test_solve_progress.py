"""What a stopped ``solve --input`` leaves: it is continued under the same settings and questions, and refused under any other."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands import solve_search
from stepladder.commands.solve_progress import Progress, model_digest
from stepladder.errors import CheckpointError, DataFormatError
from stepladder.policy.prompts import StepFormat
from stepladder.types import Problem
from tests.models import save_tiny_policy

QUESTIONS = ("1+2", "2+2", "3+3", "4+4")
PROBLEMS = [Problem(id=f"q{number}", question=question) for number, question in enumerate(QUESTIONS)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Save a policy whose solutions end with any digit."""
    folder = save_tiny_policy(tmp_path / "policy", max_positions=256)
    StepFormat(answer_pattern=r"(\d)").save(folder)
    return folder


class Folder:
    """A folder with a model and questions, in which ``solve`` is called and stopped."""

    def __init__(self, path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.model, self.monkeypatch = path, model, monkeypatch
        self.output, self.tree = path / "answers.jsonl", path / "trees.json"
        self.part = path / "answers.jsonl.part"
        self.ask(*QUESTIONS)

    def ask(self, *questions: str) -> None:
        rows = [{"id": f"q{number}", "question": question} for number, question in enumerate(questions)]
        (self.path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def solve(self, *more: str, output: Path | None = None, simulations: int = 4) -> Result:
        words = ["solve", "--input", str(self.path / "questions.jsonl"), "--output", str(output or self.output)]
        words += ["--policy", str(self.model), "--simulations", str(simulations), "--set", "search.max_step_tokens=8", *more]
        return CliRunner().invoke(app, words if "--method" in more else [*words, "--method", "mcts"])

    def stop_after(self, count: int, *more: str) -> None:
        """Stop a call after some answers, as a kill does between two of them."""
        search = solve_search.search_reviewed

        def stopping(*arguments):
            for number, found in enumerate(search(*arguments)):
                if number == count:
                    raise KeyboardInterrupt
                yield found

        with self.monkeypatch.context() as patch:
            patch.setattr(solve_search, "search_reviewed", stopping)
            assert self.solve(*more).exit_code != 0
        assert len(self.part.read_text().splitlines()) == 1 + count


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Return a folder with four questions."""
    return Folder(tmp_path, model, monkeypatch)


def test_a_stopped_call_ends_with_the_bytes_of_one_never_stopped(folder: Folder) -> None:
    """Answers and trees alike: trees of the answers that were kept are there too, in the order of the questions.

    One question is searched at a time, since the last digits of log-probabilities depend on what is forwarded together.
    """
    whole, trees = folder.path / "whole.jsonl", folder.path / "whole.json"
    alone = ("--set", "search.max_trees=1")
    assert folder.solve("--tree", str(trees), *alone, output=whole).exit_code == 0
    folder.stop_after(2, "--tree", str(folder.tree), *alone)
    done = folder.solve("--tree", str(folder.tree), *alone)
    assert done.exit_code == 0, done.output
    assert folder.output.read_bytes() == whole.read_bytes()
    assert folder.tree.read_bytes() == trees.read_bytes()
    assert [tree["problem_id"] for tree in json.loads(trees.read_text())] == ["q0", "q1", "q2", "q3"]
    assert not folder.part.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--simulations", "5"), "budget.num_simulations was 4 and is 5"),
        (("--tokens", "99"), "budget.max_tokens was None and is 99"),
        (("--seed", "7"), "seed was 0 and is 7"),
        (("--method", "beam"), "method."),
        (("--option", "num_children=3"), "was"),
        (("--set", "format.step_end= ;"), "format.step_end was '\\n' and is ' ;'"),
        (("--set", "search.max_depth=3"), "budget.max_depth was 16 and is 3"),
        (("--set", "policy.dtype=bfloat16"), "policy.dtype was 'auto' and is 'bfloat16'"),
        (("--set", "evaluate.scores.bound=clip"), "evaluate.scores.bound.type was 'none' and is 'clip'"),
    ],
)
def test_answers_of_other_settings_are_refused(folder: Folder, change: tuple[str, ...], said: str) -> None:
    """One sentence names the setting and both values; nothing is lost, and the earlier settings still continue."""
    folder.stop_after(1)
    kept = folder.part.read_bytes()
    done = folder.solve(*change)
    assert done.exit_code == 2
    assert "answers.jsonl.part: holds answers of other settings" in done.stderr
    assert said in done.stderr
    assert "remove the file to start over" in done.stderr
    assert folder.part.read_bytes() == kept
    assert not folder.output.exists()


def test_answers_of_other_models_are_refused(folder: Folder, tmp_path: Path) -> None:
    """Weights that were trained further in place, another PRM; the same files in another place are the same model."""
    folder.stop_after(1)
    moved = tmp_path / "moved"
    folder.model.rename(moved)
    folder.model = moved
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    original = weights.read_bytes()
    weights.write_bytes(data)
    assert "digest of the policy was" in folder.solve().stderr
    weights.write_bytes(original)
    (tmp_path / "other").mkdir()
    assert "digest of the discriminator was None" in folder.solve("--discriminator", str(moved)).stderr
    assert folder.solve().exit_code == 0


def test_going_on_never_writes_the_kept_answers_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while a call goes on loses nothing: the file of kept answers is only ever cut at its end, and appended to."""
    folder.stop_after(2)
    kept = folder.part.read_bytes()
    folder.part.write_bytes(kept + b'{"answer": {"id": "q')
    monkeypatch.setattr(Path, "write_text", None)
    progress = Progress.resume(folder.part, lambda: json.loads(kept.splitlines()[0])["settings"], PROBLEMS, keeps_trees=False)
    assert len(progress.rows) == 2
    assert folder.part.read_bytes() == kept


def test_what_changes_no_answer_may_change(folder: Folder) -> None:
    """Batch sizes and limits on memory."""
    folder.stop_after(1)
    done = folder.solve("--set", "policy.max_batch=3", "--set", "search.max_trees=1")
    assert done.exit_code == 0, done.output


def test_answers_to_other_questions_are_refused(folder: Folder) -> None:
    """A question that was edited is named; questions that come later may be added, and are asked."""
    folder.stop_after(2)
    answered = [json.loads(line)["answer"]["id"] for line in folder.part.read_text().splitlines()[1:]]
    edited = list(QUESTIONS)
    edited[int(answered[0][1:])] = "9+9"
    folder.ask(*edited)
    done = folder.solve()
    assert done.exit_code == 2
    assert f"holds the answer to another question '{answered[0]}'" in done.stderr
    folder.ask(*QUESTIONS, "5+5")
    assert folder.solve().exit_code == 0
    assert len(folder.output.read_text().splitlines()) == 5


def test_trees_that_were_not_kept_are_not_left_out_in_silence(folder: Folder) -> None:
    """A call without --tree cannot be continued with it; the other way round it can."""
    folder.stop_after(1)
    done = folder.solve("--tree", str(folder.tree))
    assert done.exit_code == 2
    assert "holds an answer without its tree" in done.stderr
    folder.part.unlink()
    folder.stop_after(1, "--tree", str(folder.tree))
    assert folder.solve().exit_code == 0


@pytest.mark.parametrize(
    "text", ['{"id": "q0", "answer": "1"}\n', "[]\n", "no JSON\n", "thesis", "[[[", '{"schema_version": 9, "settings": {}}\n']
)
def test_files_that_say_no_settings_are_refused(tmp_path: Path, text: str) -> None:
    """Such as those of earlier versions, which began with an answer, and files of others; they stay as they are."""
    part = tmp_path / "a.part"
    part.write_text(text)
    with pytest.raises((CheckpointError, DataFormatError), match="remove the file to start over"):
        Progress.resume(part, dict, [], keeps_trees=False)
    assert part.read_text() == text


@pytest.mark.parametrize("place", ["answer", "tree"])
@pytest.mark.parametrize("value", [None, [], "x", -1, {"a": 1}, "gone"])
def test_a_changed_answer_is_refused_with_its_line(tmp_path: Path, place: str, value: Any) -> None:
    """Whatever field of an answer or of its tree is replaced or removed; unchanged, numbers of every kind included, it is taken."""
    part, problems = tmp_path / "a.part", [Problem(id="a", question="a")]
    row = {"id": "a", "question": "a", "answer": "\u00bd", "confidence": 0.1 + 0.2, "generated_tokens": 3, "steps": ["x\n"]}
    tree = {"values": [1e-300, float("inf"), -0.0], "depths": [0, 1], "provenance": {"seed": 2**63}}
    progress = Progress.resume(part, dict, problems, keeps_trees=True)
    progress.kept.begin(dict)
    progress.keep([(row, tree)])
    taken = Progress.resume(part, dict, problems, keeps_trees=True)
    assert taken.rows == {"a": row} and taken.trees == {"a": tree}
    header, line = part.read_text().splitlines()
    for key in {"answer": row, "tree": tree}[place]:
        changed = json.loads(line)
        del changed[place][key]
        if value != "gone":
            changed[place][key] = value
        part.write_text(f"{header}\n{json.dumps(changed)}\n")
        with pytest.raises(DataFormatError, match=r"a.part:2: must .* -- remove the file to start over"):
            Progress.resume(part, dict, problems, keeps_trees=True)


def test_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    """A kill in the middle of a line costs that answer; in the middle of the first line there is nothing yet."""
    part = tmp_path / "a.part"
    problems = [Problem(id=name, question=name) for name in "ab"]
    progress = Progress.resume(part, dict, problems, keeps_trees=False)
    progress.kept.begin(lambda: {"seed": 0})
    progress.keep([({"id": "a", "question": "a"}, None)])
    progress.keep([({"id": "b", "question": "b"}, None)])
    text = part.read_text()
    part.write_text(text[:-5])
    assert list(Progress.resume(part, lambda: {"seed": 0}, problems, keeps_trees=False).rows) == ["a"]
    assert part.read_text() == text[: text.rindex('{"answer"')]
    part.write_text(text[:9])
    torn = Progress.resume(part, lambda: {"seed": 1}, problems, keeps_trees=False)
    torn.kept.begin(lambda: {"seed": 1})
    assert json.loads(part.read_text())["settings"] == {"seed": 1}


def test_a_hub_id_is_named_and_a_directory_is_read(tmp_path: Path) -> None:
    """A model that is not cached has its name only."""
    assert model_digest("nobody/no-such-model") == "nobody/no-such-model"
    (tmp_path / "config.json").write_text("{}")
    before = model_digest(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    assert model_digest(str(tmp_path)) != before
