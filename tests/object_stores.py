"""An object store on the loopback address, and a run in it that ends with its process: ``python -m tests.object_stores CONFIG URL``."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stepladder.loops.runs.progress import ProgressDisplay
from tests.runs import called

BUCKET = "runs"


class LoopbackStore:
    """S3 as moto answers for it, in a thread of this process; it keeps its objects while it does not answer."""

    def __init__(self) -> None:
        """Start it with one empty bucket."""
        # Every request would be a line of the test run.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._port = 0
        self.answer()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        """Environment variables of those who use it."""

    def answer(self) -> None:
        """Answer, at the same address as before."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def fall_silent(self) -> None:
        """Answer no more."""
        self._server.stop()

    def empty(self) -> None:
        """Remove all objects, and make the bucket."""
        import s3fs
        from moto.s3.models import s3_backends

        for account in s3_backends.values():
            for backend in account.values():
                backend.reset()
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)


@contextmanager
def loopback_store() -> Iterator[LoopbackStore]:
    """Yield a store while the block runs, which the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        store = LoopbackStore()
        for name, value in store.variables.items():
            patch.setenv(name, value)
        store.empty()
        try:
            yield store
        finally:
            store.fall_silent()


@contextmanager
def evolving(config: Path, url: str, cache: Path) -> Iterator[subprocess.Popen]:
    """Run a configuration up to the labels of round 1 in a process of its own, without workers, with copies in a directory.

    There it stays, and only its mirror works, until it is killed at the end of the block.
    """
    command = [sys.executable, "-m", "tests.object_stores", str(config), url]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STEPLADDER_CACHE": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _stay(display: ProgressDisplay, number: int, stage: str) -> None:
    if (number, stage) == (1, "label"):
        threading.Event().wait()


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressDisplay, "enter", _stay)
        done = called("evolve", sys.argv[1], "--run-dir", sys.argv[2])
    print(done.stdout, done.stderr)
    sys.exit(done.returncode)
