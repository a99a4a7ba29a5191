"""Errors that a client sees, in the form of OpenAI's protocol."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Describe the error.

        Args:
            status: HTTP status.
            message: One sentence for people.
            code: Short name for programs.
            param: The field at fault; None if it is none.
            headers: Further headers of the reply.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the reply."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
