"""The built wheel, unpacked into an empty directory and used outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.report_run import full_rows, write_run

ROOT = Path(__file__).parents[2]


def sources():
    """Return the files of the checkout that belong to it, by their names."""
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the sources are no git checkout")
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Build the wheel from a copy of the sources, and unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True
    )
    if copied.returncode:
        pytest.skip("the sources are no git checkout")
    for name in filter(None, copied.stdout.split("\0")):
        if name.split("/")[0] in ("stepladder", "configs") or "/" not in name:
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def run(unpacked, folder, *arguments):
    """Run the command line of the unpacked wheel."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "stepladder", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_works_outside_the_checkout(unpacked, tmp_path):
    """Versions, a shipped configuration, the recipes and the assets of the report come from the wheel."""
    version = run(unpacked, tmp_path, "--version")
    assert f"installed in {unpacked / 'stepladder'}" in version.stdout
    # The file is found and read: what is missing is the model.
    dry = run(unpacked, tmp_path, "evolve", "configs/gsm8k.toml", "--set", "policy.model=./none", "--dry-run")
    assert "'./none' does not exist" in dry.stderr
    assert "rstar-math" in run(unpacked, tmp_path, "recipes").stdout
    write_run(tmp_path / "run", full_rows())
    report = run(unpacked, tmp_path, "report", "run")
    assert report.returncode == 0, report.stderr
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


def test_the_wheel_holds_what_the_checkout_has(unpacked):
    """Every file of the package and of ``configs/`` is in the wheel, and nothing else."""
    names = [name for name in sources() if name.startswith(("stepladder/", "configs/"))]
    wanted = {name if name.startswith("stepladder/") else f"stepladder/{name}" for name in names}
    found = {str(path.relative_to(unpacked)) for path in (unpacked / "stepladder").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    found = {name for name in found if "__pycache__" not in name}
    assert found == wanted
