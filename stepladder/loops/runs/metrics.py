"""The figures of a run's rounds for analysis: as records, as flat rows, and as a data frame."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from stepladder.loops.config.run import flatten_keys
from stepladder.loops.runs.results import RoundRow

if TYPE_CHECKING:
    import pandas


class RunMetrics(Sequence[RoundRow]):
    """The figures of the finished rounds, in order.

    Example: ``metrics[-1].best_policy`` is a figure of the last round, ``metrics.to_pandas()`` has all of them.
    """

    def __init__(self, rows: Sequence[RoundRow]) -> None:
        """Hold the figures of some rounds."""
        self._rows = tuple(rows)

    def __len__(self) -> int:
        """Return the number of rounds."""
        return len(self._rows)

    def __iter__(self) -> Iterator[RoundRow]:
        """Yield the rounds."""
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> RoundRow: ...
    @overload
    def __getitem__(self, index: slice) -> "RunMetrics": ...
    def __getitem__(self, index: int | slice) -> "RoundRow | RunMetrics":
        """Return a round, or some of them."""
        return RunMetrics(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one flat row per round, with keys such as ``test.pass_at_1``; a figure that was not measured is None."""
        return [flatten_keys(row.to_dict()) for row in self._rows]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a data frame with one row per round, indexed by its number."""
        import pandas

        rows = self.to_dicts()
        return pandas.DataFrame(rows).set_index("round") if rows else pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table, for notebooks."""
        # The method belongs to the protocol of notebooks; pandas has it, without a type.
        frame: Any = self.to_pandas()
        return frame._repr_html_()

    def __repr__(self) -> str:
        return f"RunMetrics({len(self)} rounds)"
