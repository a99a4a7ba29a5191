"""The progress file of a stopped ``solve --input``, next to its output: finished answers, and everything that they depend on.

Every line but the first holds an answer, its tree where trees are wanted, and a digest of both. Answers of other settings or of another
question are never mixed with new ones.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepladder.commands.kept_work import START_OVER, KeptWork, Part, Settings
from stepladder.digests import current_digest
from stepladder.errors import CheckpointError, DataFormatError
from stepladder.loops.config.run import Config, flatten_keys
from stepladder.mcts.search_method import SearchMethod
from stepladder.prm.sources import prm_members
from stepladder.types import Budget, Problem

PART_VERSION = 2
_SHAPING_KEYS = ("format.", "evaluate.scores.", "policy.dtype", "policy.device", "policy.backend", "policy.vllm.max_context")
_SHAPING_KEYS += ("policy.vllm.options", "policy.openai.model", "prm.backend", "problems.rule", "problems.grading.", "problems.verifier")
"""Settings that change answers, by the beginnings of their keys. Speed, memory and addresses do not."""


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

    kept: KeptWork
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
        progress = cls(kept=KeptWork(path=path, version=PART_VERSION, noun="answers"), keeps_trees=keeps_trees)
        questions = {problem.id: problem.question for problem in problems}
        for part in progress.kept.read(settings):
            progress._take(part, questions)
        return progress

    def keep(self, answers: Sequence[tuple[dict[str, Any], dict[str, Any] | None]]) -> None:
        """Write finished answers, with their trees if trees are kept: together, so that those of one shard are kept together."""
        self.kept.keep([{"answer": row, "tree": tree} for row, tree in answers])

    def _take(self, part: Part, questions: dict[str, str]) -> None:
        """Take over the answer of a line."""
        row, tree = part.values.get("answer"), part.values.get("tree")
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise DataFormatError(f"{part.place}: must hold an answer of an earlier call: got {part.values!r:.80} -- {START_OVER}")
        name = row["id"]
        if name in questions and questions[name] != row.get("question"):
            raise CheckpointError(
                f"{part.place}: holds the answer to another question {name!r}: it was {row.get('question')!r:.80} and is "
                f"{questions[name]!r:.80} -- {START_OVER}, or give the earlier questions"
            )
        if self.keeps_trees and tree is None:
            raise CheckpointError(f"{part.place}: holds an answer without its tree -- leave --tree out, or {START_OVER}")
        self.rows[name] = row
        if tree is not None:
            self.trees[name] = tree
