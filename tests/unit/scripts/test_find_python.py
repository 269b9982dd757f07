"""Which Python the set-up takes, from folders of stand-ins that run, fail or are too old."""

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.scripts.stand_ins import stand_in

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "find_python.sh"
WORKS = 'echo "$0"'  # what the probe makes a usable Python do: print its own path
SHIM = 'echo "pyenv: python3.12: command not found" >&2; exit 127'
TOO_OLD = 'case "$2" in *platform*) echo "Python 3.11.2";; *) exit 1;; esac'


def find(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script where PATH is ``tmp_path/bin`` and what the script itself needs, and HOME is ``tmp_path``."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "ls", "sort"):
        found = next(Path(folder, name) for folder in ("/bin", "/usr/bin") if Path(folder, name).exists())
        (tools / name).symlink_to(found)
    environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{tools}", "HOME": str(tmp_path), **variables}
    return subprocess.run(
        [str(tools / "bash"), str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )


def test_a_shim_that_fails_gives_way_to_pyenvs_newest_patch(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin/python3.12", SHIM)
    stand_in(tmp_path / "bin/python3", TOO_OLD)
    stand_in(tmp_path / ".pyenv/versions/3.12.9/bin/python3.12", WORKS)
    newest = stand_in(tmp_path / ".pyenv/versions/3.12.10/bin/python3.12", WORKS)
    assert find(tmp_path).stdout == f"{newest}\n"


def test_the_version_of_the_pins_comes_before_a_newer_one_on_path(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin/python3.13", WORKS)
    stand_in(tmp_path / "bin/python3", WORKS)
    pinned = stand_in(tmp_path / "pyenv/versions/3.12.1/bin/python3.12", WORKS)
    assert find(tmp_path, PYENV_ROOT=str(tmp_path / "pyenv")).stdout == f"{pinned}\n"


def test_a_python3_of_any_new_enough_version_will_do(tmp_path: Path) -> None:
    only = stand_in(tmp_path / "bin/python3", WORKS)
    assert find(tmp_path).stdout == f"{only}\n"


def test_an_activated_environment_is_passed_by_for_the_python_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.12").symlink_to(sys.executable)
    assert find(tmp_path).stdout == f"{os.path.realpath(sys.executable)}\n"


def test_none_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin/python3", TOO_OLD)
    result = find(tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "install one" in result.stderr
    assert "pyenv install 3.12" in result.stderr


def test_python_given_and_too_old_is_refused_though_another_would_do(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin/python3.12", WORKS)
    old = stand_in(tmp_path / "old/python3", TOO_OLD)
    result = find(tmp_path, PYTHON=str(old))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: PYTHON={old} is Python 3.11.2; Python 3.12 or newer")


def test_python_given_that_does_not_run_is_refused(tmp_path: Path) -> None:
    result = find(tmp_path, PYTHON=str(stand_in(tmp_path / "bin/python3.12", SHIM)))
    assert result.returncode == 2
    assert "does not run" in result.stderr
