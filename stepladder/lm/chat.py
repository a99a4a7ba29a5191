"""Chat templates: messages rendered as text, with a fixed date, and the token that closes an assistant's turn."""

from collections.abc import Sequence
from datetime import date as Date
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from stepladder.errors import ConfigError
from stepladder.lm.encoding import TextEncoder

FIXED_DATE = "2024-07-26"
"""Date that reward models and judges read, so that scores do not depend on the day. It is Llama 3's own default date."""

_PROBE = "\ufdd0"
"""Stands for the assistant's message; no text holds it."""


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, date: str, open_turn: bool = False) -> str:
    """Render messages with the tokenizer's chat template.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Each with ``role`` and ``content``.
        date: The date that the template prints as today, as YYYY-MM-DD.
        open_turn: Whether to open the assistant's next turn.

    Raises:
        ConfigError: If the template refuses the messages, or cannot be run.
    """
    day = Date.fromisoformat(date)
    try:
        text: Any = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=open_turn, strftime_now=day.strftime
        )
    # A template is a program of somebody's: it may divide by zero, index beyond a list, or recurse for ever.
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError) as error:
        roles = ", ".join(message["role"] for message in messages)
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"chat template: must render the messages of {roles}: {first_line} -- use another template") from error
    return str(text)


def today() -> str:
    """Return this day as YYYY-MM-DD, in local time."""
    return Date.today().isoformat()


def prints_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the rendered chat template may depend on the date."""
    return bool(tokenizer.chat_template) and "strftime_now" in tokenizer.get_chat_template()


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the control token that closes an assistant's message; None without a chat template or without such a token."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    try:
        tail = render_chat(tokenizer, messages, date=FIXED_DATE).rpartition(_PROBE)[2]
    except ConfigError:
        return None
    encoder = TextEncoder(tokenizer)
    first = next(iter(encoder.find_controls(tail)), None)
    return None if first is None or tail[: first[0]].strip() else encoder.control_ids(tail, [first])[0]
