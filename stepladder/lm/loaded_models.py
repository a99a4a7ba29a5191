"""The models that a process has loaded, by the role that each has in its work.

A job asks for a model by its role and by what it is made from. The same model is handed out again as it is. Another one takes its place,
and the old one is given up first, so that the two never have to fit into memory at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

T = TypeVar("T")
RoleKind = Literal["policy", "server", "prm", "discriminator"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What a model is for."""

    kind: RoleKind
    """What it does; ``server`` is the connection to a policy that another process serves."""
    number: int = 0
    """Place among models that work together, such as the members of an ensemble, from 0."""
    is_reference: bool = False
    """Whether it is the model that an implicit PRM is read against."""


class Engine(Protocol):
    """An engine that runs beside this process's own models."""

    def reset(self) -> None:
        """Drop open work and cached prefixes."""
        ...

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        ...


EngineT = TypeVar("EngineT", bound=Engine)


class LoadedModels:
    """Weights and engines of a process; as a context it gives them up at its end.

    Weights that two roles share are loaded once. An engine works for one role alone.
    """

    def __init__(self) -> None:
        self._weights: dict[Role, tuple[object, Any]] = {}
        self._engines: dict[Role, tuple[object, Engine]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def weights(self, role: Role, made_from: object, load: Callable[[], T]) -> T:
        """Return the weights of a role.

        Args:
            role: The role.
            made_from: All that decides what ``load`` returns; weights made from the same are handed out again.
            load: Loads them, with whatever belongs to them, such as a tokenizer.
        """
        if role not in self._weights or self._weights[role][0] != made_from:
            self._weights.pop(role, None)
            shared = [weights for key, weights in self._weights.values() if key == made_from]
            self._weights[role] = (made_from, shared[0] if shared else load())
        return self._weights[role][1]

    def engine(self, role: Role, made_from: object, start: Callable[[], EngineT]) -> EngineT:
        """Return the engine of a role with an empty cache; one made from something else is shut down before ``start`` is called.

        Args:
            role: The role.
            made_from: All that decides what ``start`` returns.
            start: Starts the engine.
        """
        if role in self._engines and self._engines[role][0] != made_from:
            self._engines.pop(role)[1].close()
        if role not in self._engines:
            self._engines[role] = (made_from, start())
        engine: Any = self._engines[role][1]
        engine.reset()
        return engine

    def keep_first(self, kind: RoleKind, count: int) -> None:
        """Give up the models of a kind whose number is ``count`` or higher: a smaller ensemble would otherwise leave them in memory."""
        for role in [role for role in self._weights if role.kind == kind and role.number >= count]:
            del self._weights[role]
        for role in [role for role in self._engines if role.kind == kind and role.number >= count]:
            self._engines.pop(role)[1].close()

    def release(self) -> None:
        """Give everything up; call it before training, which needs the memory."""
        for _, engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._weights.clear()
