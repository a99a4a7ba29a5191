"""Sections ``problems`` and ``format``: sources of problems, grading, and the form of prompts and steps."""

from datetime import date as Date
from typing import Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from stepladder.errors import check
from stepladder.loops.config.section import Section
from stepladder.plugs import names_function
from stepladder.settings import RuleName


class GradingConfig(Section):
    """Options that make rule ``math`` less strict than its default; ``docs/grading.md`` has an example of each."""

    percent: Literal["fraction", "unit"] = "fraction"
    """``fraction``: 50% is 1/2. ``unit``: a per cent sign may be left out, so 50% is 50."""
    units: Literal["stated", "optional"] = "stated"
    """``optional``: a unit that the reference states may be left out."""
    names: Literal["stated", "optional"] = "stated"
    """``optional``: 3 is enough if the reference is ``x = 3``."""
    brackets: Literal["kept", "any"] = "kept"
    """``any``: (1,2), [1,2] and {1,2} are the same."""
    bases: Literal["stated", "optional"] = "stated"
    """``optional``: 11 is enough if the reference is ``11_2``."""
    order: Literal["free", "kept"] = "free"
    """``kept``: values without brackets must come in the order of the reference."""
    case: Literal["kept", "ignored"] = "kept"
    """``ignored``: X is x."""


class ProblemsConfig(Section):
    """Sources of problems, and grading of answers."""

    train: str
    """Problems to search: a JSONL or Parquet file, the id of a Hugging Face data set, a preset such as ``preset:math``, or a function,
    ``file.py:function``, of the split that returns rows. See docs/problems.md."""
    held_out: str | None = None
    """Held-out problems for the gate, named like ``train``; None sets ``held_out_size`` training problems aside."""
    held_out_size: int = Field(default=200, ge=1)
    """Training problems set aside for the gate when there is no ``held_out`` file; chosen by a hash of their ids."""
    test: str
    """Test problems, named like ``train``; never used for a decision."""
    id_field: str = "id"
    """Field that holds the problem id; an empty string makes ids from file name and line number."""
    question_field: str = "question"
    """Field that holds the question."""
    answer_field: str = "answer"
    """Field that holds the reference answer. It may be missing, or an empty string, with a ``verifier`` that takes none."""
    answer_pattern: str | None = None
    r"""Regular expression with one group that reads the final answer out of the answer field (GSM8K: ``#### (.*)``); None reads the last
    ``\boxed{}`` of a field that has one, and takes any other field unchanged."""
    level_field: str | None = None
    """Field that holds a problem's level, such as its difficulty or subject; figures are then also given by level. None has no levels."""
    subset: str | None = None
    """Configuration name of a Hugging Face data set (GSM8K: ``main``); None for files."""
    train_split: str = "train"
    """Split of a Hugging Face data set for ``train``."""
    test_split: str = "test"
    """Split of a Hugging Face data set for ``test``."""
    train_limit: int | None = Field(default=None, ge=1)
    """Use at most this many training problems."""
    held_out_limit: int | None = Field(default=None, ge=1)
    """Use at most this many held-out problems."""
    test_limit: int | None = Field(default=None, ge=1)
    """Use at most this many test problems."""
    rule: Literal["exact", "number", "math"] = "math"
    """Grading rule: same text, same number, or mathematically equivalent."""
    unreadable: Literal["refuse", "drop"] = "refuse"
    """Treatment of problems whose reference answer no answer can equal: stop with the first one's place, or leave them out."""
    grading: GradingConfig = GradingConfig()
    """Options of rule ``math``."""
    verifier: str | None = Field(default=None, pattern=r"^[^:]+(:\w+)?$")
    """Verifier of a task, in place of ``rule``: ``package.module:function``, ``file.py:function``, or an entry point of the group
    ``"stepladder.tasks"``. The function takes what it needs of ``question``, ``answer`` or ``solution``, and ``reference``. It returns True
    or False, a number in [0, 1], or one of these with a reason. A factory of a ``stepladder.Verifier`` takes ``problems``. None grades by
    ``rule``."""
    verifier_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of the verifier, by name."""
    passing: float = Field(default=1.0, gt=0, le=1)
    """Smallest number from a verifier that counts as right. Less is wrong with partial credit: the value of a step rises with it."""
    deadline_s: float = Field(default=5.0, gt=0)
    """CPU seconds after which grading one answer is killed and the answer counts as wrong; 20 times as many if it only waits."""

    @model_validator(mode="after")
    def _check_verifier(self) -> Self:
        own = self.rule == "math" and self.grading == GradingConfig()
        check(not self.verifier or own, f"rule and grading are not for a verifier from outside: got {self.verifier!r} -- leave them out")
        check(self.verifier or not self.verifier_options, f"verifier_options need a verifier: got {self.verifier_options!r}")
        check(self.verifier or self.answer_field, "answer_field must be named unless a verifier grades: got '' -- name it, or the verifier")
        return self


UNSTATED = {
    "date": None,
    "answer": "stated",
    "prompt": None,
    "steps": "text",
    "step_pattern": None,
    "step_tokens": 64,
    "step_surprise": 3.0,
    "thinking_end": None,
}
"""Settings of the format that are left out of its stored form if they have these values."""


class FormatConfig(Section):
    """How prompts, steps and final answers are written."""

    prompt_template: str = "{question}\n"
    """Prompt text; ``{question}`` is replaced."""
    prompt: str | None = Field(default=None, pattern=r"^[^:]+(:\w+)?$")
    """Function that makes the prompt text of a question, in place of ``prompt_template``: ``file.py:function``,
    ``package.module:function``, or an entry point of the group ``"stepladder.tasks"``."""
    step_end: str = "\n"
    """Text that closes a step: a line end, a blank line, or a closing tag."""
    steps: str = "text"
    """Where a step ends: at ``step_end`` (``text``); at the end of a ``sentence``; where its text matches ``step_pattern`` (``pattern``);
    after ``step_tokens`` tokens (``tokens``); before an uncertain token (``surprise``); or where a function says so, named as in
    ``prompt``."""
    step_pattern: str | None = None
    """Regular expression for ``steps = "pattern"``: a step ends at the token with which its text first matches. ``'\\nStep \\d+:'`` ends a
    step at the heading of the next."""
    step_tokens: int = Field(default=64, ge=1)
    """Tokens of a step with ``steps = "tokens"``; at least so many with ``surprise``."""
    step_surprise: float = Field(default=3.0, gt=0)
    """With ``steps = "surprise"`` a step ends before a token with -log p of at least this many nats."""
    thinking_end: str | None = None
    """Text that ends a thinking block, such as ``</think>``. Steps are made inside the block, too. Answers are read after it, and only the
    end token ends a solution. None for solutions without such blocks."""
    answer_pattern: str | None = None
    r"""Regular expression with one group that reads the final answer out of a step; None reads the last ``\boxed{}``, braces balanced.
    A step with an answer ends the solution."""
    answer: Literal["stated", "solution"] = "stated"
    """``stated``: a step states the answer. ``solution``: the whole solution is the answer, and ends by itself, or with a step that
    ``answer_pattern`` matches; a ``problems.verifier`` judges it."""
    chat: bool | Literal["auto"] = "auto"
    """Render the prompt with the tokenizer's chat template. ``auto`` does so if there is one and the model ends its turns with the
    template's token, which a base model does not; the choice is shown and kept by the run."""
    system: str | None = None
    """System message for the chat template."""
    date: str | None = None
    """Date that a chat template prints as today, as YYYY-MM-DD; None is the day on which the run, or the command, began."""

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Settings that are not used are written, and so hashed, as before there were any.
        return {name: value for name, value in write(self).items() if name not in UNSTATED or value != UNSTATED[name]}

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, value: str) -> str:
        if value not in get_args(RuleName) and not names_function(value):
            raise ValueError(f"steps must be one of {', '.join(get_args(RuleName))}, or a function such as file.py:function")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # TOML has dates of its own, and reads one without quotes as such.
        return value.isoformat() if type(value) is Date else value

    @field_validator("date")
    @classmethod
    def _check_date(cls, value: str | None) -> str | None:
        if value is not None and Date.fromisoformat(value).isoformat() != value:
            raise ValueError("date must have the form YYYY-MM-DD")
        return value

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if "{question}" not in self.prompt_template:
            raise ValueError(f"prompt_template must contain '{{question}}': got {self.prompt_template!r}")
        if not self.step_end:
            raise ValueError("step_end must not be empty: without a boundary there are no steps")
        return self
