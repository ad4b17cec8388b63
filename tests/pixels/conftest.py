"""kernels.c as it stands, compiled for these tests whatever set-up has compiled."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from medspark.pixels import native


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """Path of the library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("kernels") / "kernels.so"
    source = Path(native.__file__).with_name("kernels.c")
    subprocess.run([compiler, "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    return target
