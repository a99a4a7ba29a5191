"""The progress file of a stopped ``solve --input``, next to its output: finished answers, and everything that they depend on.

The first line of the file holds the settings, every other line an answer, its tree where trees are wanted, and a digest of both. Answers of
other settings, of another question, or that were changed since are never mixed with new ones.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepladder.digests import current_digest
from stepladder.errors import CheckpointError, DataFormatError
from stepladder.files import reading
from stepladder.loops.config.run import Config, flatten_keys
from stepladder.mcts.search_method import SearchMethod
from stepladder.prm.sources import prm_members
from stepladder.types import Budget, Problem

PART_VERSION = 2
Settings = Callable[[], dict[str, Any]]
_START_OVER = "remove the file to start over"
_BEGINNING = '{"schema_version": '
"""What the file begins with, also where a kill cut its first line."""
_SHAPING_KEYS = ("format.", "evaluate.scores.", "policy.dtype", "policy.device", "policy.backend", "policy.vllm.max_context")
_SHAPING_KEYS += ("policy.vllm.options", "policy.openai.model", "prm.backend", "problems.rule", "problems.grading.", "problems.verifier")
"""Settings that change answers, by the beginnings of their keys. Speed, memory and addresses do not."""


def part_of(output: Path) -> Path:
    """Return the file that keeps the answers of an output until it is complete."""
    return Path(f"{output}.part")


def model_digest(source: str) -> str:
    """Return a digest of the files of a model directory; for a hub id, its name with the commit in the local cache."""
    if Path(source).is_dir():
        return current_digest(Path(source))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return source
    return f"{source}@{Path(cached).parent.name}" if isinstance(cached, str) else source


def answer_settings(
    config: Config, *, policy: str, prm: Sequence[str], method: SearchMethod, budget: Budget, seed: int, discriminator: str | None
) -> dict[str, Any]:
    """Return everything that decides an answer except its question, as plain values under the names that messages show.

    Args:
        config: The configuration.
        policy: Directory or hub id of the policy.
        prm: Directories or hub ids of the PRMs.
        method: Search method.
        budget: Caps per question.
        seed: Seed of the search.
        discriminator: Directory or hub id of the second model; None without one.
    """
    plain = flatten_keys(config.model_dump(mode="json"))
    facts: dict[str, Any] = {"digest of the policy": model_digest(policy)}
    facts |= {f"digest of PRM {number}": model_digest(member) for number, member in enumerate(_members(prm))}
    if prm:
        spec = config.prm.spec
        facts["prm.spec"] = current_digest(Path(spec)) if spec is not None and Path(spec).is_file() else spec
        facts["prm.reference"] = None if config.prm.reference is None else model_digest(config.prm.reference)
    if discriminator is not None:
        facts["digest of the discriminator"] = model_digest(discriminator)
    described = {"name": method.name, **method.all_settings()}
    facts |= flatten_keys({"method": described, "budget": asdict(budget), "seed": seed})
    facts |= {name: value for name, value in plain.items() if name.startswith(_SHAPING_KEYS)}
    return json.loads(json.dumps(facts, default=str))


def _members(prm: Sequence[str]) -> list[str]:
    return [member for directory in prm for member in prm_members(directory)]


@dataclass(kw_only=True, slots=True)
class Progress:
    """Finished answers of a file of questions."""

    path: Path
    """Where they are kept."""
    keeps_trees: bool
    """Whether the tree of every answer is kept as well."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the output by question id."""
    trees: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Trees by question id, if they are kept."""

    @classmethod
    def resume(cls, path: Path, settings: Settings, problems: Sequence[Problem], *, keeps_trees: bool) -> "Progress":
        """Read the answers of an earlier call. An incomplete last line is dropped, so that its question is asked again.

        Args:
            path: The progress file; it need not exist.
            settings: Returns the ``answer_settings`` of this call; called only if there are answers.
            problems: The questions of this call.
            keeps_trees: Whether this call wants trees.

        Raises:
            CheckpointError: If the answers belong to other settings or questions, or lack the trees that this call wants.
            DataFormatError: If the file is not one that ``solve`` left.
        """
        progress = cls(path=path, keeps_trees=keeps_trees)
        with reading(path, what="the finished answers of a stopped call", remedy=_START_OVER):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.split("\n")[:-1]
        if not lines:
            # A foreign file is not replaced, although it may look like a first line that was cut.
            if not (text.startswith(_BEGINNING) or _BEGINNING.startswith(text)):
                raise DataFormatError(f"{path}: must hold the finished answers of a stopped call: got {text[:80]!r} -- {_START_OVER}")
            return progress
        _check_settings(path, _object(path, 1, lines[0]), settings())
        questions = {problem.id: problem.question for problem in problems}
        for number, line in enumerate(lines[1:], start=2):
            progress._take(number, _object(path, number, line), questions)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return progress

    def begin(self, settings: Settings) -> None:
        """Write the first line if no answers are kept yet.

        Call it after the models are loaded: only then the local cache knows the commit of a hub model.
        """
        if not self.rows:
            header = json.dumps({"schema_version": PART_VERSION, "settings": settings()})
            self.path.write_text(f"{header}\n", encoding="utf-8")

    def keep(self, row: dict[str, Any], tree: dict[str, Any] | None) -> None:
        """Write a finished answer, with its tree if trees are kept."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"answer": row, "tree": tree, "digest": _digest(row, tree)}) + "\n")

    def _take(self, number: int, line: dict[str, Any], questions: dict[str, str]) -> None:
        """Take over the answer of a line."""
        row, tree = line.get("answer"), line.get("tree")
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise DataFormatError(f"{self.path}:{number}: must hold an answer of an earlier call: got {line!r:.80} -- {_START_OVER}")
        if line.get("digest") != _digest(row, tree):
            raise DataFormatError(f"{self.path}:{number}: must be as it was written: it was changed since -- {_START_OVER}")
        name = row["id"]
        if name in questions and questions[name] != row.get("question"):
            raise CheckpointError(
                f"{self.path}:{number}: holds the answer to another question {name!r}: it was {row.get('question')!r:.80} and is "
                f"{questions[name]!r:.80} -- {_START_OVER}, or give the earlier questions"
            )
        if self.keeps_trees and tree is None:
            raise CheckpointError(f"{self.path}:{number}: holds an answer without its tree -- leave --tree out, or {_START_OVER}")
        self.rows[name] = row
        if tree is not None:
            self.trees[name] = tree


def _digest(row: dict[str, Any], tree: dict[str, Any] | None) -> str:
    """Return a digest of an answer and its tree; it is the same before they are written and after they are read."""
    return hashlib.sha256(json.dumps([row, tree]).encode()).hexdigest()[:16]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    """Return the JSON object of a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataFormatError(f"{path}:{number}: must hold an answer of an earlier call: got {line[:80]!r} -- {_START_OVER}")
    return value


def _check_settings(path: Path, header: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse answers of other settings; the message names the first setting that differs."""
    kept = header.get("settings")
    if header.get("schema_version") != PART_VERSION or not isinstance(kept, dict):
        raise CheckpointError(f"{path}: does not say which settings its answers belong to -- {_START_OVER}")
    for name in [*settings, *(name for name in kept if name not in settings)]:
        if kept.get(name) != settings.get(name):
            raise CheckpointError(
                f"{path}: holds answers of other settings: {name} was {kept.get(name)!r} and is {settings.get(name)!r} -- repeat the "
                f"earlier settings, or {_START_OVER}"
            )
