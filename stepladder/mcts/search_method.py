"""A search method, as records of settings, and the one spelling that users have for them: flat names.

Every method runs through the same loop of the engine (select, propose, score, insert, back up). Its settings are grouped into records by
what they decide. A setting's name is its own everywhere, so ``num_children=8`` means the same on the command line, in a configuration and
in Python.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from inspect import get_annotations
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from stepladder.errors import ConfigError
from stepladder.mcts.answer_rules import ANSWER_RULES
from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.settings.judgement import Stopping, Valuation
from stepladder.mcts.settings.setting_checks import check, check_choice
from stepladder.mcts.strategies import SELECTIONS
from stepladder.mcts.strategies.descent import EDGE_RULES, Descent
from stepladder.mcts.strategies.strategy import Selection

_Record = TypeVar("_Record")
_NO_SETTINGS = ("name", "description", "type")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchMethod:
    """A search method.

    Raises:
        ConfigError: On construction, if settings do not go together.
    """

    name: str
    """The preset's name; stored with every tree."""
    description: str
    """Description of the method in one sentence, for users."""
    selection: Selection = field(default_factory=Descent)
    """Which leaves are expanded next."""
    growth: Steps | Solutions = field(default_factory=Steps)
    """Growth from the selected leaves: steps, or whole solutions if the selection draws those."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the policy is sampled."""
    valuation: Valuation = field(default_factory=Valuation)
    """Worth of nodes and paths."""
    stopping: Stopping = field(default_factory=Stopping)
    """When the search ends before its budget does."""
    answer_rule: str = "weighted-vote"
    """``best``, ``majority``, ``weighted-vote``, ``path-vote``, ``robust-path`` or ``value-path``; see ``AnswerTally``."""

    def __post_init__(self) -> None:
        check_choice("answer_rule", self.answer_rule, ANSWER_RULES)
        draws = self.selection.DRAWS_SOLUTIONS
        fits = isinstance(self.growth, Solutions) == draws
        check(fits, f"growth must be {'Solutions' if draws else 'Steps'} with selection {self.selection.type_name!r}: got {self.growth!r}")
        if isinstance(self.growth, Steps):
            self._check_samples(self.growth)
        self.selection.check_with(self.growth, self.sampling)

    def _check_samples(self, growth: Steps) -> None:
        """Check that a node can be sampled as often as the growth says."""
        if growth.widening is not None:
            rules = ("once", *self.selection.WIDENS)
            check(
                growth.widening.widen in rules,
                f"widen must be one of {', '.join(rules)} with selection {self.selection.type_name!r}: got {growth.widening.widen!r}",
            )
        asks_again = growth.widening is not None or growth.siblings == "distinct"
        check(
            not asks_again or self.sampling.temperature > 0,
            "widen and siblings = 'distinct' need samples that can differ: got temperature 0 -- raise it",
        )

    @property
    def samples_solutions(self) -> bool:
        """Whether an expansion draws solutions instead of single steps."""
        return self.selection.DRAWS_SOLUTIONS

    @property
    def draws_independently(self) -> bool:
        """Whether it draws whole solutions, none of which depends on another."""
        return self.selection.DRAWS_INDEPENDENTLY

    @property
    def root_samples(self) -> int:
        """Samples of the root's expansion; for whole solutions the draws per request."""
        if isinstance(self.growth, Solutions):
            return self.selection.wave
        if self.growth.root_num_children is not None:
            return self.growth.root_num_children
        return self.selection.samples_at_root(self.growth.num_children)

    def options(self) -> dict[str, Any]:
        """Return every setting of the method, by its flat name."""
        return {"selection": self.selection.type_name, **_flat(self)}

    def settings(self) -> dict[str, Any]:
        """Return the settings that are not at their defaults."""
        defaults = default_options((*SELECTIONS, type(self.selection)))
        return {name: value for name, value in self.options().items() if value != defaults[name]}

    def all_settings(self) -> dict[str, Any]:
        """Return the settings of all methods, with defaults for those that this method does not take, to store and compare."""
        return default_options() | self.options()


class Built(NamedTuple):
    """A method that was made from settings by name."""

    method: SearchMethod
    refused: tuple[str, ...]
    """Names that the method does not take. The caller must report them."""


def build_method(
    name: str,
    description: str,
    given: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
    rules: Collection[type[Selection]] = SELECTIONS,
) -> Built:
    """Make a method from settings by name.

    Args:
        name: Its name.
        description: Description of the method.
        given: The user's settings. ``selection`` is the name of a rule, or a ``Selection`` class.
        base: Defaults for settings that are not given. Settings that the method does not take are left out.
        rules: Selection rules that ``selection`` may name.

    Raises:
        ConfigError: If a value is unknown or impossible.
    """
    options = _Options(given, base or {})
    try:
        chosen, type_name = _selection_of(options.pop("selection", "puct"), rules)
        made = chosen.of_type(type_name, options.take)
        growth = options.take(Solutions if chosen.DRAWS_SOLUTIONS else Steps)
        method = options.take(SearchMethod, name=name, description=description, selection=made, growth=growth)
    except ConfigError as error:
        raise ConfigError(f"method {name!r}: {error}") from None
    return Built(method, tuple(options.given))


def _selection_of(chosen: str | type[Selection], rules: Collection[type[Selection]]) -> tuple[type[Selection], str]:
    """Return the class of a rule and the name of its member."""
    if not isinstance(chosen, str):
        is_rule = isinstance(chosen, type) and issubclass(chosen, Selection)
        check(is_rule, f"selection must be a name or a Selection class: got {chosen!r}")
        return chosen, chosen.TYPES[0]
    known = {name: rule for rule in rules for name in rule.TYPES}
    check_choice("selection", chosen, known)
    return known[chosen], chosen


class _Options:
    """Flat settings on their way into records."""

    def __init__(self, given: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        self.given = dict(given)
        """What no record took yet."""
        self._base = base

    def pop(self, name: str, default: Any) -> Any:
        """Return a setting and mark it as taken."""
        return self.given.pop(name) if name in self.given else self._base.get(name, default)

    def take(self, record: type[_Record], **fixed: Any) -> _Record:
        """Make a record of the settings that it and its parts have fields for."""
        values = dict(fixed)
        for declared in fields(record):  # pyright: ignore[reportArgumentType]
            if declared.name in fixed or declared.name in _NO_SETTINGS:
                continue
            held = _part_of(record, declared)
            if held is None:
                if declared.name in self.given or declared.name in self._base:
                    values[declared.name] = self.pop(declared.name, None)
            elif not hasattr(held, "SWITCH") or self._is_on(held):
                values[declared.name] = self.take(held)
        return record(**values)

    def _is_on(self, record: Any) -> bool:
        """Say whether an optional record is switched on. If not, mark its switch as taken."""
        value = self.given.get(record.SWITCH, self._base.get(record.SWITCH, record.OFF))
        is_off = value == record.OFF and not isinstance(value, bool)
        if is_off:
            self.pop(record.SWITCH, None)
        return not is_off


def _flat(record: Any) -> dict[str, Any]:
    """Return the settings of a record and its parts by name; for a part that is switched off, only its switch."""
    found: dict[str, Any] = {}
    for declared in fields(record):
        if declared.name in _NO_SETTINGS:
            continue
        value, held = getattr(record, declared.name), _part_of(type(record), declared)
        if is_dataclass(value):
            found |= _flat(value)
        elif held is None:
            found[declared.name] = value
        else:
            found[held.SWITCH] = held.OFF
    return found


def _part_of(record: type, declared: "Field[Any]") -> Any:
    """Return the class of the record in a field, also if it is switched off by default; None for a setting."""
    if is_dataclass(declared.default_factory):
        return declared.default_factory
    return next((member for member in get_args(_hints(record)[declared.name]) if is_dataclass(member)), None)


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


class Option(NamedTuple):
    """A setting as its record declares it."""

    name: str
    """Its name."""
    default: Any
    """Its default; if its record is switched off by default, the value of the switch."""
    record: type
    """The record that declares it."""
    switch: str | None
    """The setting that switches the record on; None if the record is always on."""


def options_of(record: type) -> Iterator[Option]:
    """Yield the settings that a record and its parts declare, optional parts included."""
    for declared in fields(record):
        if declared.name in (*_NO_SETTINGS, "selection", "growth"):
            continue
        held = _part_of(record, declared)
        if held is not None:
            yield from options_of(held)
        else:
            yield _option(declared, record)


def _option(declared: "Field[Any]", record: Any) -> Option:
    switch = getattr(record, "SWITCH", None)
    default = record.OFF if declared.default is MISSING else declared.default
    owner = next(base for base in record.__mro__ if declared.name in get_annotations(base))
    return Option(declared.name, default, owner, None if declared.name == switch else switch)


def all_options(rules: Collection[type[Selection]] = SELECTIONS) -> dict[str, Option]:
    """Return the settings of all methods, by name, without ``selection`` itself. Those of the selection rules come first."""
    found: dict[str, Option] = {}
    for record in (*_records(rules), Steps, Solutions, SearchMethod):
        for option in options_of(record):
            found.setdefault(option.name, option)
    return found


def _records(rules: Collection[type[Selection]]) -> list[type]:
    """Return the records of selection rules. The scores of a descent are separate records."""
    scores = list(dict.fromkeys(EDGE_RULES.values())) if Descent in rules else []
    return [*scores, *rules]


def default_options(rules: Collection[type[Selection]] = SELECTIONS) -> dict[str, Any]:
    """Return the default of every setting of any method."""
    return {"selection": "puct", **{name: option.default for name, option in all_options(rules).items()}}
