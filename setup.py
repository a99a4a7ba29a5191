"""The part of the build that ``pyproject.toml`` cannot say: the files of ``configs/`` are shipped inside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies ``configs/`` to ``stepladder/configs/`` of the wheel; an editable install reads the checkout's."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(Path(__file__).with_name("configs"), Path(self.build_lib) / "stepladder" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
