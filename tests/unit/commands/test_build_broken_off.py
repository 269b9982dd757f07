"""commands/build.py, broken off by a full disk, Ctrl-C or a kill: no process, no half-written dataset."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from tests.pairs import make_record, make_records, write_jsonl
from tests.unit.commands.building import build, one_error_line

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("num_pairs", [20, 60], ids=["at the end", "while writing"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tokenizer_folders: dict[str, Path], small_disk: Path, capsys: pytest.CaptureFixture[str], num_pairs: int
) -> None:
    source = write_jsonl(small_disk.parent / "pairs.jsonl", make_records(num_pairs))
    assert build(source, tokenizer_folders["chatml"], small_disk / "set") == 2
    assert one_error_line(capsys).startswith(f"no space left for {small_disk / 'set'} (")
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where outputs go; empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.ranks
@pytest.mark.parametrize(
    "signal_number",
    [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.slow)],
)
def test_interrupted_it_leaves_no_process_and_no_dataset(
    tokenizer_folders: dict[str, Path], folder: Path, signal_number: signal.Signals
) -> None:
    source = write_jsonl(
        folder.parent / "pairs.jsonl", (make_record(index, context_chars=100_000) for index in range(3000))
    )
    command = [sys.executable, "-m", "megatron_longpo.commands.main", "build", "--input", str(source), "--workers", "2"]
    command += [
        "--tokenizer",
        str(tokenizer_folders["chatml"]),
        "--output",
        str(folder / "set"),
        "--max-length",
        "99999",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        partial = folder / ".set.bin.partial"
        deadline = time.monotonic() + 300
        while not (partial.exists() and partial.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline, "the build does not start"
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # two workers and the process they were forked from
        if signal_number == signal.SIGINT:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.kill()
        _, errors = process.communicate(timeout=120)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []
    finally:
        process.kill()
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        # On a busy machine it takes long enough for a line of progress.
        told = [line for line in errors.splitlines() if not line.startswith("build: ")]
        assert told == ["megatron-longpo build: interrupted"]
        assert list(folder.iterdir()) == []
    else:
        # Nothing can clean up after a kill; what it leaves is not a dataset, and the next build replaces it.
        assert all(path.name.startswith(".set.") for path in folder.iterdir())
        small = write_jsonl(folder.parent / "small.jsonl", make_records(2))
        assert build(small, tokenizer_folders["chatml"], folder / "set") == 0
        assert sorted(folder.iterdir()) == sorted(dataset_file(folder / "set", suffix) for suffix in SUFFIXES)
