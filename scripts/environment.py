"""Make the environment that ``make`` runs everything in, and link it as ``.venv`` in this checkout.

Run by the Python that ``scripts/find_python.sh`` prints; needs nothing but the standard library. What holds:

- One environment per set of pins, requirements, Python version and machine type, under ``MEGATRON_LONGPO_HOME``
  (default ``~/.cache/megatron-longpo``). Every checkout with the same pins shares it, so the package itself is not
  installed in it: ``make`` puts the checkout on PYTHONPATH instead.
- The stamp is written last. A folder without one was left by a set-up that was killed, and is made anew: a package
  that pip was copying when it died looks installed to pip.
- One set-up at a time: the others wait for its lock. pip holds the lock too, so an orphaned pip is waited for.
"""

import ast
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LINK = CHECKOUT / ".venv"
EXTRAS_INSTALLED = ("quickstart", "arrow", "generate", "ray", "bench", "dev")
# With the CUDA build of torch: 6.5 GB, and 2.8 GB of wheels while pip holds them, often on the same disk.
BYTES_NEEDED = 10 * 10**9
SECONDS_BETWEEN_LINES = 15
LOG_LINES_SHOWN = 15
STARTED = time.monotonic()


class SetupError(Exception):
    """The set-up cannot go on; the message is one line for the user."""


def main() -> int:
    """Make or reuse the environment; returns the exit status (0 ready, 1 failed, 130 interrupted)."""
    try:
        if LINK.exists() and not LINK.is_symlink():
            raise SetupError(
                f"{LINK} is a folder of your own, and this set-up links its environment there; move it away"
            )
        environment = environment_path(requirements())
        if not is_complete(environment):
            make_home(environment.parent)
            with locked(environment.with_suffix(".lock")) as lock:
                if not is_complete(environment):  # it may have been made while this process waited
                    build(environment, lock)
        link(environment)
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next run starts the environment again", file=sys.stderr)
        return 130
    return 0


def requirements() -> list[str]:
    """What the environment holds: the requirement lists of setup.py, read without running it (it needs setuptools)."""
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((CHECKOUT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("REQUIREMENTS", "EXTRAS")
    }
    return lists["REQUIREMENTS"] + [entry for extra in EXTRAS_INSTALLED for entry in lists["EXTRAS"][extra]]


def environment_path(required: list[str]) -> Path:
    """Where the environment for these requirements, the pins and this Python lives."""
    home = os.environ.get("MEGATRON_LONGPO_HOME")
    if not home:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        home = Path(cache) / "megatron-longpo"
    pins = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    key = json.dumps([pins, required, platform.python_version(), platform.machine()])
    return Path(home).expanduser().absolute() / f"venv-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def make_home(home: Path) -> None:
    """Make the folder of all environments."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{error}; set MEGATRON_LONGPO_HOME to a folder that can be written") from error


def is_complete(environment: Path) -> bool:
    """Whether the stamp is there and the interpreter still runs (its base may have been uninstalled)."""
    if not (environment / "complete").is_file():
        return False
    try:
        return subprocess.run([environment / "bin" / "python", "-c", ""], check=False).returncode == 0
    except OSError:
        return False


def build(environment: Path, lock: int) -> None:
    """Make the environment from nothing; ``lock`` is the descriptor of the held lock, which pip inherits."""
    if environment.exists():
        print(f"environment: {environment} is unfinished or broken; making it anew", flush=True)
        shutil.rmtree(environment)
    free = shutil.disk_usage(environment.parent).free
    if free < BYTES_NEEDED:
        raise SetupError(
            f"{environment.parent} has {free / 1e9:.1f} GB free and the environment needs {BYTES_NEEDED / 1e9:.0f} GB;"
            " make room or set MEGATRON_LONGPO_HOME to a folder on a larger disk"
        )
    log = environment.with_suffix(".log")
    print(f"environment: making {environment} with Python {platform.python_version()}; log: {log}", flush=True)
    print("environment: installing PyTorch and Megatron: several GB, 3-10 minutes", flush=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    check = "import megatron.core, torch, transformers"
    with log.open("w", encoding="utf-8") as output:
        run_logged([sys.executable, "-m", "venv", str(environment)], output.fileno(), log, lock)
        run_logged([*install, "-c", str(CHECKOUT / "constraints.txt"), *requirements()], output.fileno(), log, lock)
        run_logged([python, "-m", "pip", "check"], output.fileno(), log, lock)
        run_logged([python, "-c", check], output.fileno(), log, lock)
    stamp = environment / "complete"
    stamp.with_suffix(".partial").write_text("\n".join([sys.version, *requirements()]) + "\n", encoding="utf-8")
    stamp.with_suffix(".partial").replace(stamp)
    print(f"environment: ready after {time.monotonic() - STARTED:.0f} s", flush=True)


def run_logged(command: list[str], output: int, log: Path, lock: int) -> None:
    """Run ``command`` with its output in the log, a line of progress now and then, and the log's tail on failure."""
    # The checkout's PYTHONPATH and a user's pip settings would change what pip takes for installed, and where it goes.
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}
    clean |= {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        stdin=subprocess.DEVNULL,
        env=clean,
        pass_fds=[lock],
        preexec_fn=die_with_parent,  # noqa: PLW1509 (this process has one thread)
    )
    try:
        while True:
            try:
                status = process.wait(timeout=SECONDS_BETWEEN_LINES)
                break
            except subprocess.TimeoutExpired:
                print(f"environment: {time.monotonic() - STARTED:4.0f} s  {progress(log)[:90]}", flush=True)
    finally:
        process.kill()
        process.wait()
    if status != 0:
        tail = "\n".join(f"    {line}" for line in telling_lines(log)[-LOG_LINES_SHOWN:])
        print(tail, file=sys.stderr)
        raise SetupError(f"`{' '.join(command[:4])} ...` ended with status {status}; the whole log: {log}")


def die_with_parent() -> None:
    """In the child, on Linux: be killed when the set-up is, or the next set-up would wait for it to end."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def progress(log: Path) -> str:
    """What pip is at: its last line, or how many packages it has copied while it prints nothing for minutes."""
    line = telling_lines(log)[-1]
    if not line.startswith("Installing collected packages:"):
        return line
    num_copied = len(list(log.with_suffix("").glob("lib/python*/site-packages/*.dist-info")))
    return f"Installing: {num_copied} of {line.count(',') + 1} packages copied"


def telling_lines(log: Path) -> list[str]:
    """The log's lines without pip's warnings, which can be hundreds; never empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("WARNING:")] or ["starting"]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on ``path``; says so when another process has it and waits for that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"environment: waiting for another set-up of the same one ({path})", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def link(environment: Path) -> None:
    """Point ``.venv`` of this checkout at the environment, replacing an older link in one step."""
    if LINK.is_symlink() and LINK.readlink() == environment:
        return
    partial = LINK.with_name(".venv.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(environment, target_is_directory=True)
    partial.replace(LINK)
    print(f"environment: .venv -> {environment}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
