"""Bounds of settings: enforced where a settings object is made by hand, in words that a reader understands."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from stepladder.errors import ConfigError
from stepladder.settings import Count, Natural, NonNegative, Positive, Share, check_bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One setting of every kind."""

    share: Share = 0.5
    half: Annotated[float, Ge(0), Lt(0.5)] | Literal["visits"] = 0.0
    finite: Annotated[float, Gt(0), Lt(math.inf)] = 1.0
    factor: Annotated[float, Gt(0), Le(1)] = 1.0
    positive: Positive = 1.0
    weight: NonNegative = 0.0
    count: Count | None = None
    number: Natural = 0
    name: Literal["a", "b"] = "a"
    text: str = ""

    def __post_init__(self) -> None:
        check_bounds(self, where="sample")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"share": 1.1}, "share must be in [0, 1]: got 1.1"),
        ({"share": "much"}, "share must be in [0, 1]: got 'much'"),
        ({"share": math.nan}, "share must be in [0, 1]: got nan"),
        ({"half": 0.5}, "half must be in [0, 0.5) or one of visits: got 0.5"),
        ({"half": "often"}, "half must be in [0, 0.5) or one of visits: got 'often'"),
        ({"finite": math.inf}, "finite must be > 0 and finite: got inf"),
        ({"factor": 0.0}, "factor must be in (0, 1]: got 0.0"),
        ({"positive": 0}, "positive must be > 0: got 0"),
        ({"weight": -1.0}, "weight must be >= 0: got -1.0"),
        ({"count": 0}, "count must be a whole number >= 1 or None: got 0"),
        ({"count": True}, "count must be a whole number >= 1 or None: got True"),
        ({"weight": True}, "weight must be >= 0: got True"),
        ({"count": 2.5}, "count must be a whole number >= 1 or None: got 2.5"),
        ({"number": -1}, "number must be a whole number >= 0: got -1"),
        ({"name": "c"}, "name must be one of a, b: got 'c'"),
    ],
)
def test_what_is_out_of_range_is_named(given: dict[str, Any], expected: str) -> None:
    """Setting, range and value stand in one sentence."""
    with pytest.raises(ConfigError) as caught:
        Sample(**given)
    assert str(caught.value) == f"sample: {expected}"


def test_what_is_in_range_is_accepted() -> None:
    """Bounds count as they are written, None and words where they are choices; a type without a range is not checked."""
    Sample(share=1, half="visits", factor=1.0, count=1, number=0, name="b", text="anything")
    Sample(share=0.0, half=0.0, finite=1e300, weight=0, count=None)
