"""The models that a process has loaded, by role.

A job asks for a model by its role and by its source (``made_from``). If the source is the same, the job gets the loaded model again.
Otherwise the old model is released first, so that the two never have to fit into memory at once.
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
    """The model's task; ``server`` is the connection to a policy that another process serves."""
    number: int = 0
    """Index among models that work together, such as the members of an ensemble, from 0."""
    is_reference: bool = False
    """Whether this is the reference model of an implicit PRM."""


class Engine(Protocol):
    """An engine that runs beside this process's own models."""

    def reset(self) -> None:
        """Drop open work and cached prefixes."""
        ...

    def close(self) -> None:
        """Stop the engine and free its memory."""
        ...


EngineT = TypeVar("EngineT", bound=Engine)


class LoadedModels:
    """Weights and engines of a process. As a context manager it releases them at its end.

    Weights that two roles share are loaded once. An engine serves one role only.
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
            made_from: Everything that decides what ``load`` returns. Weights with an equal ``made_from`` are reused.
            load: Loads the weights and what belongs to them, such as a tokenizer.
        """
        if role not in self._weights or self._weights[role][0] != made_from:
            self._weights.pop(role, None)
            shared = [weights for key, weights in self._weights.values() if key == made_from]
            self._weights[role] = (made_from, shared[0] if shared else load())
        return self._weights[role][1]

    def engine(self, role: Role, made_from: object, start: Callable[[], EngineT]) -> EngineT:
        """Return the engine of a role with an empty cache. An engine made from something else is shut down before ``start`` is called.

        Args:
            role: The role.
            made_from: Everything that decides what ``start`` returns.
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
        """Release the models of a kind with an index of ``count`` or more, which a smaller ensemble would leave in memory."""
        for role in [role for role in self._weights if role.kind == kind and role.number >= count]:
            del self._weights[role]
        for role in [role for role in self._engines if role.kind == kind and role.number >= count]:
            self._engines.pop(role)[1].close()

    def release(self) -> None:
        """Release everything. Call it before training, which needs the memory."""
        for _, engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._weights.clear()
