"""The requests of OpenAI's protocol, as far as a search can honour them, with bounds on every field."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from stepladder.serve.errors import ApiError

MAX_STOPS = 64
MAX_MESSAGES = 2048
MAX_PROMPTS = 256
MAX_OPTIONS = 100
_UNSUPPORTED = ("tools", "functions", "audio", "modalities", "prediction", "suffix", "web_search_options", "logit_bias")
"""Fields that would change the answer; they are refused instead of passed over."""


def _encodable(text: str) -> str:
    # JSON may hold half a surrogate pair, which no tokenizer can read.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it has half a surrogate pair") from None
    return text


def _few(given: Any) -> Any:
    # The bound of a dictionary's own field is checked after all entries.
    if isinstance(given, dict) and len(given) > MAX_OPTIONS:
        raise ValueError(f"must have at most {MAX_OPTIONS} entries: got {len(given)}")
    return given


# Every list stops at its first fault. A body holds hundreds of thousands of items, and an error for each would keep all other requests
# waiting for seconds.
Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
Stop = Annotated[Text, Field(min_length=1, max_length=1024)]


class SearchFields(BaseModel):
    """Field ``stepladder`` of a request: how to search."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: Annotated[str, Field(max_length=100)] | None = None
    """Search method, instead of that of the model's name."""
    simulations: Annotated[int, Field(ge=1)] | None = None
    """Cap on simulations."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Cap on generated tokens."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Deadline in seconds from the arrival of the request. The best answer so far is returned, and marked."""
    options: Annotated[dict[str, bool | int | float | str], BeforeValidator(_few)] = {}
    """Settings of the method."""
    tree: bool = False
    """Whether the reply holds the searched tree."""


class StreamOptions(BaseModel):
    """Field ``stream_options`` of a request."""

    include_usage: bool | None = None


class CommonFields(BaseModel):
    """The fields of both kinds of requests. Unknown ones are passed over, as servers of this protocol do."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=300)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = 1
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    stepladder: SearchFields = SearchFields()

    @property
    def stops(self) -> list[str]:
        """Texts before which the shown solution ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of the shown solution; None is no cap."""
        return self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether the reply has log-probabilities."""
        raise NotImplementedError

    def check_supported(self) -> None:
        """Refuse fields that a search cannot honour.

        Raises:
            ApiError: If there is one.
        """
        extra: dict[str, Any] = self.model_extra or {}
        for name in _UNSUPPORTED:
            if extra.get(name):
                raise ApiError(400, f"{name}: is not supported by a search -- leave it out", code="unsupported_parameter", param=name)
        format_ = extra.get("response_format")
        if isinstance(format_, dict) and format_.get("type", "text") != "text":
            raise ApiError(
                400, "response_format: only text is supported -- leave it out", code="unsupported_parameter", param="response_format"
            )


class TextPart(BaseModel):
    """A part of a message. Parts of other types than text are refused."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_MESSAGES)]

    def plain(self) -> dict[str, str]:
        """Return role and text."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role, "content": content}


class ChatRequest(CommonFields):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of the shown solution; None is no cap."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether the reply has log-probabilities."""
        return bool(self.logprobs)


class CompletionRequest(CommonFields):
    """Body of ``/v1/completions``."""

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = False
    best_of: Annotated[int, Field(ge=1)] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the reply has log-probabilities."""
        return self.logprobs is not None

    def prompts(self) -> list[str | tuple[int, ...]]:
        """Return every prompt, as text or as token ids."""
        given: Any = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [tuple(given)]
        return [each if isinstance(each, str) else tuple(each) for each in given]

    def check_supported(self) -> None:
        """Refuse fields that a search cannot honour.

        Raises:
            ApiError: If there is one.
        """
        super().check_supported()
        if self.echo:
            raise ApiError(
                400,
                "echo: a search does not score given text, so prompts have no log-probabilities here -- use the policy's own server",
                code="unsupported_parameter",
                param="echo",
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(
                400, "best_of: must equal n: name a method instead, such as @best-of-n-16", code="unsupported_parameter", param="best_of"
            )
