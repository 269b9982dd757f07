"""files.py: outputs are whole or absent, and one process writes one output."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_directory, atomic_file, shown

WRITERS: list[Callable[[Path], AbstractContextManager[Path]]] = [atomic_file, atomic_directory]


def write(partial: Path, text: str) -> None:
    (partial / "file" if partial.is_dir() else partial).write_text(text)


def read(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


def fail_half_way(writer: Callable[[Path], AbstractContextManager[Path]], path: Path) -> None:
    with writer(path) as partial:
        write(partial, "half")
        raise RuntimeError


@pytest.mark.parametrize("writer", WRITERS)
def test_whole_or_absent(writer: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path) -> None:
    path = tmp_path / "new" / "output"
    with pytest.raises(RuntimeError):
        fail_half_way(writer, path)
    assert list(path.parent.iterdir()) == []
    with writer(path) as partial:
        write(partial, "whole")
        assert not path.exists()
    assert read(path) == "whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("writer", WRITERS)
def test_two_writers(writer: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path) -> None:
    """The second is refused, and the first goes on undisturbed."""
    path = tmp_path / "output"
    with writer(path) as partial:
        write(partial, "first")
        with (
            pytest.raises(UserError, match=f"^{path}: in use by process {os.getpid()}; another process is writing it"),
            writer(path),
        ):
            pass
    assert read(path) == "first"


@pytest.mark.parametrize("name", ["atomic_file", "atomic_directory"])
def test_a_killed_writer_holds_no_lock(name: str, tmp_path: Path) -> None:
    """What it left behind is not in the next one's output."""
    path = tmp_path / "output"
    code = f"""
import time
from pathlib import Path
from megatron_longpo.files import {name}
with {name}(Path({str(path)!r})) as partial:
    (partial / "left" if partial.is_dir() else partial).write_text("left")
    print("written", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    writer = {"atomic_file": atomic_file, "atomic_directory": atomic_directory}[name]
    with pytest.raises(UserError, match="another process"), writer(path):
        pass
    process.kill()
    process.wait()
    time.sleep(0.1)
    with writer(path) as partial:
        write(partial, "second")
    assert read(path) == "second" and not (path / "left").exists()


def test_a_name_that_is_not_utf8_can_be_shown() -> None:
    name = shown(Path(os.fsdecode(b"caf\xe9.jsonl")))
    assert name == "caf\\xe9.jsonl" and name.encode("utf-8")
