"""Tests of code that the kernel sandboxes, where the kernel can."""

import pytest

from stepladder.data.step_checks.sandbox import check_sandbox
from stepladder.errors import ConfigError


def _sandboxes() -> bool:
    try:
        check_sandbox()
    except ConfigError:
        return False
    return True


needs_locks = pytest.mark.skipif(not _sandboxes(), reason="this kernel or container offers no Landlock or no seccomp")
