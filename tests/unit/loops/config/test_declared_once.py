"""A setting is declared once: sections are the objects that the code takes, or agree with them in every name, default and refusal."""

import ast
import inspect
import sys
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_type_hints

import pytest

from stepladder.data.grading.rules import MathOptions
from stepladder.errors import ConfigError
from stepladder.lm.settings import EngineOptions, EngineSettings, StageSettings, TrainSettings
from stepladder.loops.config.load import load_config
from stepladder.loops.config.models import OpenAIConfig, VLLMConfig
from stepladder.loops.config.names import setting_classes
from stepladder.loops.config.problems import FormatConfig, GradingConfig
from stepladder.loops.config.training import PreferenceConfig
from stepladder.policy.backends.server_settings import ServerOptions, ServerSettings
from stepladder.policy.prompts import StepFormat


@pytest.mark.parametrize(
    ("base", "kinds"),
    [
        (StageSettings, (TrainSettings, PreferenceConfig)),
        (EngineOptions, (EngineSettings, VLLMConfig)),
        (ServerOptions, (ServerSettings, OpenAIConfig)),
    ],
)
def test_what_is_shared_is_inherited(base: type, kinds: tuple[type, ...]) -> None:
    """A section and the object that is made of it have their common settings from one class, and neither declares one again."""
    shared = {each.name for each in fields(base)}
    for kind in kinds:
        assert issubclass(kind, base)
        assert shared.isdisjoint(kind.__annotations__)


def test_the_step_format_agrees_with_its_section() -> None:
    """The two are apart because a model directory holds the one and a run the other; names and defaults are the same.

    A run may leave ``chat`` open; the format of a model cannot.
    """
    section = {name: field.default for name, field in FormatConfig.model_fields.items()}
    assert section | {"chat": False} == {each.name: each.default for each in fields(StepFormat)}
    hints = get_type_hints(StepFormat) | {"chat": bool | Literal["auto"]}
    assert {name: field.annotation for name, field in FormatConfig.model_fields.items()} == {name: hints[name] for name in section}


@pytest.mark.parametrize(
    "wrong", [{"prompt_template": "no place"}, {"step_end": ""}, {"date": "1.1.2026"}], ids=lambda wrong: next(iter(wrong))
)
def test_the_step_format_refuses_what_its_section_refuses(wrong: dict[str, str]) -> None:
    """The same value is impossible in a configuration and in a model directory."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StepFormat(**wrong)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        load_config(None, ["problems.train=a", "problems.test=b", "policy.model=m", *(f"format.{k}={v!r}" for k, v in wrong.items())])


def test_the_options_of_grading_are_those_of_the_grader() -> None:
    """Every choice of the section is an option of rule ``math``, and the defaults are the strict rule."""
    assert MathOptions.of(**GradingConfig().model_dump()) == MathOptions()


def documented(kind: type) -> set[str]:
    """The fields of a class, its bases included, that a docstring follows."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("stepladder"):
            (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            for one, after in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
                    found.add(one.target.id)
    return found


@pytest.mark.parametrize("kind", setting_classes(), ids=lambda kind: kind.__name__)
def test_every_setting_is_documented(kind: Any) -> None:
    """Each setting has a docstring, which the reference of settings is made of; sections of the top say it in their own class."""
    names = {each.name for each in fields(kind)} if is_dataclass(kind) else set(kind.model_fields)
    sections = {name for name in names if inspect.isclass(annotation := kind.__annotations__.get(name)) and annotation in setting_classes()}
    assert names - sections <= documented(kind), sys.modules[kind.__module__].__file__
