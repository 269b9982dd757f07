"""A wheel of the package holds every file of it, templates and type marker included."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_wheel_is_complete(tmp_path: Path) -> None:
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path / name)
    package = tmp_path / "megatron_longpo"
    shutil.copytree(ROOT / "megatron_longpo", package, ignore=shutil.ignore_patterns("__pycache__"))
    for template in ("at_the_top.jinja", "generate/deeper.html.jinja"):
        (package / template).touch()
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("megatron_longpo/")}
    files = {str(path.relative_to(tmp_path)) for path in package.rglob("*") if path.is_file()}
    assert packed == files
