"""Facts about the problems of a run: rows read, left out and shared, and evaluation problems that resemble training problems."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stepladder.files import atomic_write_text, read_json
from stepladder.loops.runs.json_records import record_of

_FILE = "problems.json"
_REMEDY = "remove the file; evolve writes it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFacts:
    """One split."""

    num_rows: int
    """Rows of its source."""
    num_problems: int
    """Problems in use."""
    dropped: dict[str, int]
    """Rows that could not be used, by reason."""
    num_shared: int
    """Problems left out because a split further from training asks the same question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Similar:
    """Evaluation problems that resemble training problems."""

    num_problems: int
    """Problems of the evaluation set."""
    num_similar: int
    """Those that share a run of ten words with a training problem."""
    examples: list[list[str]]
    """Ids of such a problem and of a training problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemFacts:
    """All problems of a run."""

    splits: dict[str, SplitFacts]
    """By name: ``train``, ``held_out``, ``test``."""
    similar: dict[str, Similar]
    """By evaluation set: ``held_out``, ``test``."""

    def save(self, root: Path) -> None:
        """Write the facts into a run directory."""
        atomic_write_text(root / _FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, root: Path) -> "ProblemFacts | None":
        """Read the facts of a run; None if it has none, as a run of an earlier version.

        Raises:
            CheckpointError: If the file is damaged.
        """
        path, what = root / _FILE, "facts about problems"
        if not path.exists():
            return None
        return record_of(cls, read_json(path, what=what, remedy=_REMEDY), place=path, what=what, remedy=_REMEDY)

    def sentences(self) -> list[str]:
        """Return what a reader should know, one sentence each; none if nothing was left out and nothing is similar."""
        said = []
        for name, split in self.splits.items():
            if split.dropped:
                reasons = ", ".join(f"{count} with {reason}" for reason, count in sorted(split.dropped.items()))
                said.append(f"{name}: {sum(split.dropped.values())} of {split.num_rows} rows are left out, {reasons}")
            if split.num_shared:
                said.append(f"{name}: {split.num_shared} problems are left out because another split asks the same")
        for name, similar in self.similar.items():
            if similar.num_similar:
                said.append(
                    f"{name}: {similar.num_similar} of {similar.num_problems} problems share ten words in a row with a training problem"
                )
        return said
