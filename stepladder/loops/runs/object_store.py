"""A place in an object store (S3, Google Cloud Storage and others), reached through fsspec.

An object appears whole or not at all. Names of objects are relative to the place. Credentials and endpoints are those of fsspec and of the
store's own library.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from stepladder.errors import BackendError, ConfigError, StepladderError
from stepladder.files import file_fault

_URL = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.DOTALL)
_EXTRA = "pip install 'stepladder[remote]'"
_MODULES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""Packages of the extra ``remote``, by protocol."""


def is_url(place: str | Path) -> bool:
    """Say whether a place is the URL of an object store, such as ``s3://bucket/run``, and no path of this machine."""
    return isinstance(place, str) and _URL.fullmatch(place) is not None


class ObjectStore:
    """The objects below a URL.

    Every method raises a ``BackendError`` if the store does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        """Connect to nothing yet.

        Raises:
            ConfigError: If no package can reach the URL, or it names no place in a bucket.
        """
        # Not at the top: fsspec is needed for such runs alone.
        from fsspec.core import url_to_fs

        protocol, _, rest = url.partition("://")
        self.url = f"{protocol}://{rest.rstrip('/')}"
        if not rest.strip("/") or {".", ".."} & set(rest.split("/")):
            raise ConfigError(f"{url}: must name a bucket and a place in it: got {rest!r} -- write {protocol}://BUCKET/RUN")
        try:
            # Listings that fsspec keeps would hide what other machines write.
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._fs, self._root = url_to_fs(self.url, **options, **({"auto_mkdir": True} if protocol in ("file", "local") else {}))
        except ImportError as error:
            package = _MODULES.get(protocol)
            remedy = f"{package}: it is not installed -- {_EXTRA}" if package else f"of its own: {error} -- install it"
            raise ConfigError(f"{url}: needs the package {remedy}") from None
        except ValueError as error:
            raise ConfigError(f"{url}: must begin with a protocol that fsspec has: {error} -- use s3:// or gs://") from None
        self._root = self._root.rstrip("/")

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects below a folder, in order."""
        with self._answering():
            found = self._fs.find(self._path(folder))
        return sorted(path.removeprefix(f"{self._root}/") for path in map(str, found) if path.startswith(f"{self._root}/"))

    def is_empty(self) -> bool:
        """Say whether nothing lies here."""
        with self._answering():
            try:
                return not self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return True

    def read(self, name: str) -> bytes | None:
        """Return an object; None if there is none of that name."""
        with self._answering():
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object in one piece; it replaces an earlier one."""
        with self._answering():
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that must not exist; return whether it is ours. Two callers with different contents never both succeed.

        Stores that cannot make a write conditional are read again afterwards; there, two calls at the same moment may both succeed.
        """
        with self._answering(), suppress(FileExistsError):
            self._fs.pipe_file(self._path(name), content, mode="create")
        # A repeated attempt finds what the first one wrote, although the store did not get to say so.
        return self.read(name) == content

    def upload(self, path: Path, name: str) -> bool:
        """Write an object from a file of any size; return False if there is one of that name already."""
        with self._answering():
            target = self._path(name)
            # Not every store can make a write of many parts conditional.
            if self._fs.exists(target):
                return False
            try:
                self._fs.put_file(str(path), target, mode="create")
            except FileExistsError:
                return False
        return True

    def download(self, name: str, path: Path) -> bool:
        """Write an object to a file; return False if there is none of that name."""
        with self._answering():
            try:
                self._fs.get_file(self._path(name), str(path))
            except FileNotFoundError:
                return False
        return True

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._answering(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def modified(self, name: str) -> datetime:
        """Return when an object was written, by the clock of the store."""
        with self._answering():
            return self._fs.modified(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn whatever a store or its library raises into one sentence."""
        try:
            yield
        except StepladderError:
            raise
        except Exception as error:
            if (reason := file_fault(error)) is None:
                raise
            raise BackendError(f"{self.url}: the object store must answer: {reason} -- when it does, the same command continues") from error


@lru_cache(maxsize=32)
def opened(url: str) -> ObjectStore:
    """Return the store of a URL, which answered once in this process.

    Raises:
        ConfigError: If it cannot be used.
    """
    store = ObjectStore(url)
    try:
        # Listing what need not be there fails in a bucket that is not there.
        store.names(".stepladder")
    except BackendError as error:
        reason = file_fault(error.__cause__) if error.__cause__ is not None else str(error)
        raise ConfigError(
            f"{url}: must be a place in an object store that answers: {reason} -- check the name, the credentials and the endpoint"
        ) from error
    return store
