"""The environment's set-up: what makes it a new one, when it counts as complete, how commands and locks behave."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import environment

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the real setup.py and constraints.txt, and a home for its environments."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("setup.py", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(environment, "CHECKOUT", folder)
    monkeypatch.setattr(environment, "LINK", folder / ".venv")
    monkeypatch.setenv("MEGATRON_LONGPO_HOME", str(tmp_path / "home"))
    return folder


def finished(checkout: Path) -> Path:
    """An environment as a completed set-up leaves it, at the place where this checkout looks for it."""
    path = environment.environment_path(environment.requirements())
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)
    (path / "complete").touch()
    return path


def test_every_requirement_is_pinned(checkout: Path) -> None:
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in _pins(checkout)}
    names = {"".join(c if c.isalnum() or c == "-" else " " for c in entry).split()[0] for entry in _required()}
    assert {"torch", "megatron-core", "pytest", "gguf"} <= names
    assert names - pinned == set()


def _required() -> list[str]:
    return environment.requirements()


def _pins(checkout: Path) -> list[str]:
    return [line for line in (checkout / "constraints.txt").read_text().splitlines() if "==" in line]


def test_other_pins_or_requirements_make_another_environment(checkout: Path) -> None:
    first = environment.environment_path(_required())
    assert environment.environment_path(_required()) == first
    assert environment.environment_path([*_required(), "einops"]) != first
    with (checkout / "constraints.txt").open("a") as file:
        file.write("einops==0.8.0\n")
    assert environment.environment_path(_required()) != first


def test_a_finished_environment_is_linked_and_nothing_is_made(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished(checkout)
    (checkout / ".venv").symlink_to(checkout / "of-older-pins")
    assert environment.main() == 0
    assert (checkout / ".venv").readlink() == path
    assert "making" not in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["no stamp", "no interpreter", "base interpreter uninstalled"])
def test_what_a_killed_set_up_left_is_not_complete(checkout: Path, broken: str) -> None:
    path = finished(checkout)
    assert environment.is_complete(path)
    if broken == "no stamp":
        (path / "complete").unlink()
    else:
        (path / "bin" / "python").unlink()
        if broken == "base interpreter uninstalled":
            (path / "bin" / "python").symlink_to(checkout / "gone")
    assert not environment.is_complete(path)


def test_a_users_own_folder_is_left_alone(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(checkout)
    (checkout / ".venv").mkdir()
    assert environment.main() == 1
    assert (checkout / ".venv").is_dir()
    assert capsys.readouterr().err.count("\n") == 1


def test_too_little_room_is_said_before_anything_is_made(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "BYTES_NEEDED", 10**18)
    assert environment.main() == 1
    assert "set MEGATRON_LONGPO_HOME" in capsys.readouterr().err
    assert not environment.environment_path(_required()).exists()


def test_a_failing_command_shows_the_logs_tail_without_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "set-up.log"
    command = ["sh", "-c", "echo WARNING: noise; echo ERROR: no such version; exit 3"]
    with (
        log.open("w") as output,
        environment.locked(tmp_path / "lock") as lock,
        pytest.raises(environment.SetupError, match=f"status 3; the whole log: {log}"),
    ):
        environment.run_logged(command, output.fileno(), log, lock)
    assert capsys.readouterr().err == "    ERROR: no such version\n"


def test_the_lock_is_held_as_long_as_a_child_of_the_killed_set_up_runs(tmp_path: Path) -> None:
    holder = (
        "import subprocess, sys; from pathlib import Path; from scripts import environment\n"
        "with environment.locked(Path(sys.argv[1])) as lock:\n"
        "    child = subprocess.Popen(['sleep', '2'], pass_fds=[lock])\n"
        "    print('held', flush=True); child.wait()\n"
    )
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    process.kill()
    process.wait()
    start = time.monotonic()
    with environment.locked(path):
        assert time.monotonic() - start > 0.5  # of the child's two seconds


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_command_dies_with_its_set_up(tmp_path: Path) -> None:
    runner = (
        "import sys; from pathlib import Path; from scripts import environment\n"
        "log = Path(sys.argv[1])\n"
        "with log.open('w') as output, environment.locked(log.with_suffix('.lock')) as lock:\n"
        "    environment.run_logged(['sh', '-c', 'echo $$; exec sleep 60'], output.fileno(), log, lock)\n"
    )
    log = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", runner, str(log)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(log.read_text())
    process.kill()
    process.wait()
    while _is_running(child):
        assert time.monotonic() < deadline, "the command outlives its set-up"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        # An orphan that has ended but that init has not waited for yet is a zombie, Z.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
