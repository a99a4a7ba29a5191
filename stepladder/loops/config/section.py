"""The base of every section of the configuration, and settings that are one of several variants."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Section(BaseModel):
    """Base of every section: unknown keys are errors and a loaded section never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant:
    """Marks a setting that is one of several classes, distinguished by ``type``.

    It is written as a table, ``{ type = "agent-q", critic_weight = 0.5 }``, or as the type alone to use its defaults. A table
    without a ``type`` is of the default one.
    """

    def __init__(self, default: str) -> None:
        """Return the type of a table without a ``type``."""
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic choose the class by ``type``."""
        inner = handler.generate_schema(Annotated[source, Field(discriminator="type")])
        return core_schema.no_info_before_validator_function(self.as_table, inner)

    def as_table(self, given: Any) -> Any:
        """Return a variant as a table with a type. Anything else than a name or a table stays unchanged."""
        if isinstance(given, str):
            return {"type": given}
        return {"type": self.default, **given} if isinstance(given, dict) else given
