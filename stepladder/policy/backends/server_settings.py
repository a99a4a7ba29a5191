"""How a server of the completions protocol is reached: plain data that a configuration reads without loading a client."""

from dataclasses import dataclass, field
from typing import Literal

from stepladder.settings import Count, Natural, NonNegative, Positive, check_bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """How to reach a server, but for its key."""

    url: str = "http://127.0.0.1:8000/v1"
    """Where the protocol begins."""
    model: str | None = None
    """Name of the model on the server; None takes the only one it serves."""
    concurrency: Count = 64
    """Requests in flight at once, >= 1."""
    timeout_s: Positive = 600.0
    """Seconds for one try of a request, from the connection to the last byte of the reply, > 0."""
    retries: Natural = 6
    """Further tries of a request that failed in a way that may pass, >= 0."""
    backoff_s: NonNegative = 0.5
    """Mean delay in seconds before the first further try, >= 0. Each next one doubles it, up to 30 s; half of it is jitter drawn from the
    request's seed. A server that sends ``Retry-After`` is given that time, up to 60 s."""
    stop: Literal["server", "client"] = "server"
    """``server``: the server stops at the end of a step and shows the token that it stopped at (vLLM, SGLang). ``client``: the answer is
    cut here, for servers that hide that token (llama.cpp); what they sample after the step is lost."""

    def __post_init__(self) -> None:
        check_bounds(self, where="policy.openai")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings(ServerOptions):
    """How to reach a server."""

    api_key: str | None = field(default=None, repr=False)
    """Sent as bearer token; no message ever holds it. None sends none."""
