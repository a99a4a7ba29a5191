"""Result of a label rule: the kept rows, and counts of dropped candidates by reason."""

from dataclasses import dataclass
from typing import Generic, TypeVar

RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection(Generic[RowT]):
    """Rows made from trees; ``considered == kept + sum(dropped_by_reason.values())``."""

    rows: list[RowT]
    """The kept rows, in the order of the trees."""
    considered: int
    """Candidates looked at."""
    dropped_by_reason: dict[str, int]
    """Candidates not kept; only reasons that occurred."""

    @property
    def kept(self) -> int:
        """Number of kept rows."""
        return len(self.rows)
