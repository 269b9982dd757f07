"""The set-up of .venv: what makes it anew, what it leaves alone, and that it survives kills, Ctrl-C and company."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.scripts.stand_ins import PYTHON, UV, VENV_PYTHON, stand_in

ROOT = Path(__file__).resolve().parents[3]
STEPS = ["venv", "pip", "sync", "editable"]
Run = subprocess.CompletedProcess[str]


class Checkout:
    """A checkout with the real scripts and stand-ins for what they start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv, self.made_from = folder, folder / ".venv", folder / ".venv" / "made-from"
        self.programs = folder.parent / "programs"
        self.python = stand_in(self.programs / "python3.12", PYTHON)
        stand_in(self.programs / "uv", UV)
        stand_in(self.programs / "venv-python", VENV_PYTHON)
        for name in ("scripts", "megatron_longpo"):
            (folder / name).mkdir(parents=True)
        for name in ("find_python.sh", "environment.sh", "uv.sh"):
            shutil.copy2(ROOT / "scripts" / name, folder / "scripts" / name)
        for name in ("requirements.txt", "setup.py", "megatron_longpo/__init__.py"):
            shutil.copy2(ROOT / name, folder / name)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """Start the set-up in a process group of its own, as a terminal does."""
        environment = {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder.parent),
            "STAND_INS": str(self.programs),
            "STEPS": str(self.folder.parent / "steps"),
            "CACHE": str(self.folder.parent / "cache"),
            **variables,
        }
        return subprocess.Popen(
            [str(self.folder / "scripts" / "environment.sh")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_up(self, **variables: str) -> Run:
        process = self.start(**variables)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess([], process.returncode, output, errors)

    def steps(self) -> list[str]:
        """The steps since the last call."""
        path = self.folder.parent / "steps"
        done = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return done


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "check out")


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    """A checkout whose .venv is complete."""
    result = checkout.set_up()
    assert (result.returncode, result.stderr, checkout.steps()) == (0, "", STEPS)
    return checkout


def test_it_ends_with_what_to_do_next_and_is_not_made_twice(checkout: Checkout) -> None:
    first, second = checkout.set_up(), checkout.set_up()
    assert first.stdout.endswith("to work in it: source .venv/bin/activate\n")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.steps() == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_killed_is_made_anew(checkout: Checkout, step: str) -> None:
    assert checkout.set_up(AT=step, DOES="touch .venv/half-a-package; kill -9 0").returncode == -9
    assert checkout.steps() == STEPS[: STEPS.index(step) + 1]
    assert checkout.set_up().returncode == 0
    assert checkout.steps() == STEPS
    assert not (checkout.venv / "half-a-package").exists()


def _new_pin(checkout: Checkout) -> None:
    with (checkout.folder / "requirements.txt").open("a") as file:
        file.write("# changed\n")


def _new_version(checkout: Checkout) -> None:
    (checkout.folder / "megatron_longpo" / "__init__.py").write_text('__version__ = "9"\n')


def _moved(checkout: Checkout) -> None:
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))


def _base_python_gone(checkout: Checkout) -> None:
    (checkout.venv / "bin" / "python").unlink()


def _package_gone(checkout: Checkout) -> None:
    (checkout.venv / "installed").unlink()


@pytest.mark.parametrize("change", [_new_pin, _new_version, _moved, _base_python_gone, _package_gone])
def test_what_is_out_of_date_or_broken_is_made_anew(ready: Checkout, change: Callable[[Checkout], None]) -> None:
    change(ready)
    assert ready.set_up().returncode == 0
    assert ready.steps() == STEPS


def test_another_python_makes_another_one_which_then_stays(ready: Checkout) -> None:
    newer = stand_in(ready.programs / "newer" / "python3.13", PYTHON)
    assert ready.set_up(PYTHON=str(ready.python)).returncode == 0
    assert ready.steps() == []
    assert ready.set_up(PYTHON=str(newer)).returncode == 0
    assert ready.steps() == STEPS
    assert ready.set_up().returncode == 0
    assert ready.steps() == []


def test_a_python_that_is_too_old_leaves_what_is_there(ready: Checkout) -> None:
    old = stand_in(
        ready.programs / "old" / "python3", 'case "$2" in *platform*) echo "Python 3.11.2";; *) exit 1;; esac'
    )
    result = ready.set_up(PYTHON=str(old))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"PYTHON={old} is Python 3.11.2; Python 3.12 or newer" in result.stderr
    assert ready.set_up().returncode == 0
    assert ready.steps() == []


@pytest.mark.parametrize("kind", ["environment", "file"])
def test_a_users_own_is_refused_and_stays(checkout: Checkout, kind: str) -> None:
    own = checkout.venv / "pyvenv.cfg" if kind == "environment" else checkout.venv
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    result = checkout.set_up()
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "move it away or remove it" in result.stderr
    assert own.read_text() == "mine"
    assert checkout.steps() == []


def test_an_empty_folder_will_do(checkout: Checkout) -> None:
    checkout.venv.mkdir()
    assert checkout.set_up().returncode == 0
    assert checkout.steps() == STEPS


@pytest.mark.parametrize("leads_to", ["environment", "nowhere"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(checkout: Checkout, leads_to: str) -> None:
    shared = checkout.folder.parent / "shared"
    if leads_to == "environment":
        (shared / "bin").mkdir(parents=True)
    checkout.venv.symlink_to(shared)
    result = checkout.set_up()
    assert result.returncode == 0
    assert f"replacing the link .venv -> {shared}\n" in result.stdout
    assert not checkout.venv.is_symlink()
    assert leads_to == "nowhere" or [path.name for path in shared.iterdir()] == ["bin"]


def test_two_at_once_make_one(checkout: Checkout) -> None:
    first = checkout.start(AT="sync", DOES="sleep 1")
    deadline = time.monotonic() + 30
    while not checkout.made_from.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = checkout.set_up()
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == "environment: waiting for another set-up of this checkout\n"
    first.communicate()
    assert first.returncode == 0
    assert checkout.steps() == STEPS


def test_what_a_killed_set_up_left_running_is_waited_for(checkout: Checkout) -> None:
    orphan_maker = checkout.start(AT="sync", DOES='kill -9 "$PPID"; sleep 1; touch .venv/late')
    orphan_maker.wait()
    assert checkout.set_up().returncode == 0
    assert not (checkout.venv / "late").exists()
    assert checkout.steps() == ["venv", "pip", "sync", *STEPS]


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_is_one_line(checkout: Checkout, step: str) -> None:
    result = checkout.set_up(AT=step, DOES="kill -INT 0; sleep 5")
    assert (result.returncode, result.stderr) == (130, "interrupted; the next run makes the environment anew\n")
    assert checkout.made_from.read_text() == "unfinished\n"


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("venv", "could not make a virtual environment"),
        ("pip", "pip could not install uv"),
        ("sync", "uv could not install requirements.txt"),
        ("editable", "uv could not install the package"),
    ],
)
def test_a_step_that_fails_says_why(checkout: Checkout, step: str, error: str) -> None:
    result = checkout.set_up(AT=step, DOES="echo the reason >&2; exit 1")
    reason, last = result.stderr.splitlines()
    assert (result.returncode, reason) == (2, "the reason")
    assert last.startswith("error: ")
    assert error in last
    assert checkout.set_up().returncode == 0


def test_too_little_room_is_said_before_anything_large_is_fetched(checkout: Checkout) -> None:
    stand_in(checkout.programs / "df", "echo header; echo disk 9 9 6500000 9 /")
    result = checkout.set_up(DRY_RUN="Would download 1 package")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"the disk of {checkout.folder.parent / 'cache'} has 6 GB free and 8 GB are needed" in result.stderr
    assert "set UV_CACHE_DIR" in result.stderr
    assert checkout.steps() == ["venv", "pip"]
    # What is in uv's cache is linked, not copied.
    assert checkout.set_up().returncode == 0


def test_a_users_paths_do_not_reach_pip_and_uv(checkout: Checkout) -> None:
    seen = checkout.folder.parent / "seen"
    report = f'echo "$PYTHONPATH$PYTHONHOME$PIP_TARGET$PIP_PREFIX$PIP_USER$UV_PYTHON_DOWNLOADS" >>"{seen}"'
    theirs = dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"), "theirs")
    assert checkout.set_up(AT="pip", DOES=report, **theirs).returncode == 0
    (checkout.venv / "installed").unlink()
    assert checkout.set_up(AT="sync", DOES=report, **theirs).returncode == 0
    assert seen.read_text().split() == ["0", "0never"]
