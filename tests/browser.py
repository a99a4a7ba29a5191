"""A headless Chromium for tests of pages, spoken to over two pipes (the DevTools protocol)."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="needs Chromium: none of chromium, chromium-browser and google-chrome is installed"
)
_PATIENCE_S = 60.0


class Page:
    """A tab of the browser."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self._browser.call(method, parameters, self._session)

    def open(self, place: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False, media: str = "screen") -> None:
        """Load a file or an address, and wait until its scripts have run."""
        phone, address = width < 600, place.as_uri() if isinstance(place, Path) else place
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._browser.problems.clear()
        self.call("Page.navigate", url=address)
        end = time.monotonic() + _PATIENCE_S
        while self.run("document.readyState") != "complete" or self.run("location.href") != address:
            assert time.monotonic() < end, "the page did not load"
            time.sleep(0.02)

    def wait_for(self, script: str) -> Any:
        """Return the value of a piece of JavaScript as soon as it is true in Python's sense."""
        end = time.monotonic() + _PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"it did not come true: {script}"
            time.sleep(0.05)
        return value

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def run(self, script: str) -> Any:
        """Return the value of a piece of JavaScript."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    @property
    def problems(self) -> list[str]:
        """Errors of scripts and breaches of the content policy since the page was opened."""
        return self._browser.problems


class Browser:
    """A browser process."""

    def __init__(self, process: subprocess.Popen, to_it: int, from_it: int) -> None:
        self._process, self._to, self._from = process, to_it, from_it
        self._buffer, self._number = b"", 0
        self.problems: list[str] = []

    def page(self) -> Page:
        """Open an empty tab."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Send a message and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own; it ends with the block."""
    assert PROGRAM is not None
    child_reads, to_it = os.pipe()
    from_it, child_writes = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={folder}"]
    # The browser reads from descriptor 3 and writes to 4; bash puts them there.
    command = ["bash", "-c", f'exec "$@" 3<&{child_reads} 4>&{child_writes}', "bash", PROGRAM, *flags, "about:blank"]
    process = subprocess.Popen(command, pass_fds=(child_reads, child_writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(child_reads)
    os.close(child_writes)
    try:
        yield Browser(process, to_it, from_it)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to_it)
        os.close(from_it)
