"""The contracts of tokenizers and renderers, as checks that raise ``AssertionError``.

Both take plain objects, so you can import them without a model library.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from stepladder.types import Problem

TEXTS = (
    "1+1?",
    "Is 12345 = 3 * 4115?\nYes.\n",
    "First.\n\nSecond is = 2.\n\n\nThird.\n\n",
    "  two blanks  in\tfront, and behind  \n",
    "½ of é, 語, 🙂 and x²: \\frac{1}{2}\n",
    "a < b > c | [d] <| e |> </s\n\n",
)
"""Probes: digits, steps, blanks, characters of several bytes, and beginnings of control tokens."""


class Renderer(Protocol):
    """The part of a renderer that ``check_renderer`` uses; ``stepladder.policy.prompts.PromptRenderer`` has it."""

    hash: str

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids, without control tokens."""
        ...

    def encode_solution(self, text: str) -> Sequence[Sequence[int]]:
        """Return a written solution as steps of token ids, closed like a sampled one."""
        ...

    def encode_steps(self, text: str) -> Sequence[Sequence[int]]:
        """Return the steps of an unfinished written solution as token ids."""
        ...

    def cut(self, token_ids: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return sampled tokens as steps."""
        ...


def check_tokenizer(tokenizer: Any, *, texts: Sequence[str] = TEXTS) -> None:
    """Raise ``AssertionError`` unless search and training can use a tokenizer of transformers.

    Ids must decode to their text. Every special token must be one id that decodes to nothing. The tokens that the tokenizer adds around a
    text must be the same for every text.

    Args:
        tokenizer: The tokenizer.
        texts: Probe texts that its vocabulary can encode.
    """
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for i, name in special.items():
        _require(tokenizer.encode(name, add_special_tokens=False) == [i], f"special token {name!r} must be the one id {i}")
        _require(tokenizer.decode([i], skip_special_tokens=True) == "", f"special token {name!r} must decode to nothing")
    frames = set()
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        _require(ids == tokenizer.encode(text, add_special_tokens=False), f"{text!r} must give the same ids again")
        _require(_decoded(tokenizer, ids) == text, f"{text!r} must come back from its ids: got {_decoded(tokenizer, ids)!r}")
        _require(special.keys().isdisjoint(ids), f"{text!r} must hold no special token: got {ids}")
        around = tokenizer.encode(text, add_special_tokens=True)
        begins = [k for k in range(len(around) - len(ids) + 1) if around[k : k + len(ids)] == ids]
        _require(bool(begins), f"{text!r} must have the same ids with and without the tokens around it")
        frames.add((tuple(around[: begins[0]]), tuple(around[begins[0] + len(ids) :])))
    _require(len(frames) == 1, f"the tokens around a text must be the same for every text: got {sorted(frames)}")


def check_renderer(
    make_renderer: Callable[[], Renderer],
    *,
    controls: Mapping[str, int],
    begin_id: int | None = None,
    texts: Sequence[str] = TEXTS,
) -> None:
    """Raise ``AssertionError`` unless a renderer separates control tokens from text, and cuts written solutions like sampled ones.

    Args:
        make_renderer: Returns the renderer. Two calls must return equal renderers.
        controls: Ids of the control tokens by name, without the special token for unknown text.
        begin_id: The token that begins every prompt exactly once; None if there is none.
        texts: Questions, and solutions without a final answer, that its vocabulary can encode.
    """
    renderer, other = make_renderer(), make_renderer()
    _require(renderer.hash == other.hash, f"two renderers must have one hash: got {renderer.hash!r} and {other.hash!r}")
    watched = set(controls.values())
    plain = [i for i in renderer.prompt_ids(_problem("?")) if i in watched]
    begins = sum(i == begin_id for i in plain)
    _require(begins == (begin_id is not None), f"a prompt must hold the begin token {begin_id} once: got {plain}")
    for text in [*texts, *(f"{names}{text}" for text in texts[:2] for names in _spelt(controls))]:
        ids = renderer.prompt_ids(_problem(text))
        _require(ids == other.prompt_ids(_problem(text)), f"{text!r} must give the same prompt again")
        found = [i for i in ids if i in watched]
        _require(found == plain, f"question {text!r} must add no control token to a prompt's {plain}: got {found}")
        _require(text.strip() in renderer.decode(ids), f"question {text!r} must stand in the prompt: got {renderer.decode(ids)!r}")
        _check_solution(renderer, text + "so", watched)


def _check_solution(renderer: Renderer, text: str, watched: set[int]) -> None:
    """Check a solution that ends neither with a step's end nor with a final answer."""
    written, steps = list(renderer.encode_steps(text)), list(renderer.encode_solution(text))
    flat = list(chain.from_iterable(written))
    _require(watched.isdisjoint(flat), f"solution {text!r} must hold no control token: got {flat}")
    got = "".join(map(renderer.decode, written))
    _require(got == text, f"the steps of {text!r} must concatenate to it: got {got!r}")
    _require([tuple(step) for step in renderer.cut(flat)] == [tuple(step) for step in written], f"{text!r} must be cut at the same tokens")
    end = list(chain.from_iterable(steps))[len(flat) :]
    _require(list(chain.from_iterable(steps))[: len(flat)] == flat, f"solution {text!r} must begin with its steps: got {steps}")
    _require(len(end) == 1 and end[0] in watched, f"solution {text!r} must end with one end token: got {end}")


def _spelt(controls: Mapping[str, int]) -> list[str]:
    """Return every name of a control token alone, twice, and interrupted by another name."""
    names = list(controls)
    return [spelt for name in names for spelt in (name, f"{name} {name}", f"{name[:-1]}{names[0]}{name[-1:]}")]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _problem(question: str) -> Problem:
    return Problem(id="probe", question=question)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
