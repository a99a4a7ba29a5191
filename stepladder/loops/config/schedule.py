"""The settings of single rounds: ``[[rounds]]`` tables and values of rules, laid over the settings of the run."""

import re
from typing import Any, NamedTuple

from stepladder.errors import ConfigError, right_name
from stepladder.loops.config.merge import merge, put
from stepladder.loops.config.run import Config
from stepladder.loops.config.validation import validated

SCHEDULED = ("search", "labels", "sft", "preference", "gradient", "prm", "gate", "start_from", "start_model")
"""Sections and settings that a round may have of its own. The others define the run: every round has its problems and its measurements."""

_WORD = re.compile(r"(\d+)(-)?(\d+)?")


class RoundTable(NamedTuple):
    """The settings of some rounds."""

    place: str
    """The table, for messages."""
    first: int
    """First round, >= 1."""
    last: int | None
    """Last round; None is that of the run."""
    settings: dict[str, Any]
    """Its sections."""

    def covers(self, number: int) -> bool:
        """Say whether the table holds for a round."""
        return self.first <= number and (self.last is None or number <= self.last)


def round_table(plain: dict[str, Any], place: str = "rounds") -> RoundTable:
    """Return a table as a file has it, ``plain``, read; ``place`` names it in messages.

    Raises:
        ConfigError: If it does not say for which rounds it is, or has a key that no round may change.
    """
    if "round" not in plain:
        raise ConfigError(f'{place}: round must say for which rounds it is: it is missing -- add round = 2, "2-3" or "3-"')
    unknown = [key for key in plain if key != "round" and key not in SCHEDULED]
    if unknown:
        known = ", ".join(SCHEDULED)
        raise ConfigError(f"{place}: a round may change {known}: got {unknown[0]!r} -- {right_name(unknown[0], SCHEDULED)}")
    settings = {key: value for key, value in plain.items() if key != "round"}
    given = plain["round"]
    match = _WORD.fullmatch(str(given)) if isinstance(given, int | str) and not isinstance(given, bool) else None
    first = int(match[1]) if match else 0
    last = first if match and not match[2] else int(match[3]) if match and match[3] else None
    if match is None or first < 1 or (last is not None and last < first):
        raise ConfigError(f'{place}: round must be a number from 1, as 2, "2-3" or "3-": got {given!r}')
    return RoundTable(place, first, last, settings)


def round_tables(config: Config) -> list[RoundTable]:
    """Return the tables of a configuration.

    Raises:
        ConfigError: As for ``round_table``.
    """
    return [round_table(table, f"rounds, table {number}") for number, table in enumerate(config.rounds, 1)]


def round_config(config: Config, number: int, computed: dict[str, Any] | None = None) -> Config:
    """Return the settings of a round: those of the run, under those of its table, under computed ones.

    Args:
        config: The settings of the run.
        number: The round; round 0 has those of the run.
        computed: Values of rules by the names of their settings, such as ``search.options.temperature``.

    Returns:
        Settings without tables and rules of their own.

    Raises:
        ConfigError: If they are impossible together.
    """
    table = next((each for each in round_tables(config) if each.covers(number)), None)
    if table is None and not computed:
        return config.model_copy(update={"rounds": (), "rules": type(config.rules)()})
    settings = {} if table is None else table.settings
    plain = config.model_dump(mode="json", exclude={"rounds", "rules"})
    merge(plain, settings)
    for key, value in (computed or {}).items():
        _put_computed(plain, key, value)
    where = f"round {number}" + ("" if table is None else f" ({table.place})") + (", computed by [rules]" if computed else "")
    return validated(plain, where=where)


def check_schedule(config: Config, *, where: str) -> None:
    """Check all tables of a configuration, and the settings of their rounds.

    Args:
        config: The configuration.
        where: Its file, for messages.

    Raises:
        ConfigError: If a round has two tables or is beyond the last, or a setting is unknown or impossible.
    """
    owners: dict[int, str] = {}
    try:
        for table in round_tables(config):
            last = config.run.rounds if table.last is None else table.last
            if max(table.first, last) > config.run.rounds:
                raise ConfigError(
                    f"{table.place}: round must be at most run.rounds: got {max(table.first, last)} > {config.run.rounds} -- raise "
                    "run.rounds, remove the table, or stop after a round with --stop-after"
                )
            for number in range(table.first, last + 1):
                if number in owners:
                    raise ConfigError(f"{table.place}: round must be in one table: {number} is in {owners[number]}, too -- join them")
                owners[number] = table.place
            round_config(config, table.first)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    _check_given_prms(config, where)
    _check_rules(config, where)


def distinct_rounds(config: Config) -> list[int]:
    """Return a round for every table, each with settings of its own."""
    return [table.first for table in round_tables(config)]


def given_prm(config: Config) -> str | None:
    """Return the PRM of version 0: the given one, in whichever rounds it guides the search; None without any."""
    return next((each.prm.model for each in all_settings(config) if each.prm.start == "fixed"), config.prm.model)


def scores_itself(config: Config) -> bool:
    """Say whether a policy scores the steps of a run: then the versions of PRMs are those of policies."""
    return any(each.prm.enabled and each.prm.is_policy for each in all_settings(config))


def all_settings(config: Config) -> list[Config]:
    """Return the settings of a run, and those of every round that has its own."""
    return [config, *(round_config(config, number) for number in distinct_rounds(config))]


def _check_given_prms(config: Config, where: str) -> None:
    given = {each.prm.model for each in all_settings(config) if each.prm.start == "fixed"}
    if len(given) > 1:
        raise ConfigError(
            f"{where}: prm.model must be the same in all rounds with prm.start 'fixed': got {' and '.join(sorted(map(repr, given)))} "
            "-- keep one, or start another run"
        )
    starts = {each.prm.start for each in all_settings(config) if each.prm.enabled}
    if scores_itself(config) and len(starts) > 1:
        raise ConfigError(
            f"{where}: prm.start must be the same in all rounds if a policy scores steps: got {' and '.join(sorted(map(repr, starts)))} "
            "-- keep one, or start another run"
        )


def _check_rules(config: Config, where: str) -> None:
    climb = config.rules.hill_climb
    if climb is None:
        return
    if climb.setting.split(".")[0] not in SCHEDULED:
        known = ", ".join(SCHEDULED)
        raise ConfigError(f"{where}: rules.hill_climb.setting: a round may change {known}: got {climb.setting!r}")
    try:
        round_config(config, 1, {climb.setting: climb.start})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _put_computed(plain: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    target = plain
    for table in tables:
        target = target.setdefault(table, {})
        if not isinstance(target, dict):
            raise ConfigError(f"rules: {key!r} must be the name of a setting: {table!r} is a value")
    put(target, name, value, table=".".join(tables))
