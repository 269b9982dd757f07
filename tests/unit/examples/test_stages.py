"""Stages: run once, again after a change, never half-done; a failure shows the log; an interrupt leaves no process.

The commands are real child processes (small Python programs), because what is tested is how children are handled.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examples.stages import ROOT, Record, Stage, StageError, run_stage

MIB = 2**20


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Copies its input to its output and counts its runs."""
    source, target, runs = tmp_path / "in", tmp_path / "out", tmp_path / "runs"
    source.write_text("first")
    program = f"open({str(runs)!r}, 'a').write('x'); open({str(target)!r}, 'w').write(open({str(source)!r}).read())"
    return Stage(name="copy", title="copy", command=python(program), inputs=(source,), outputs=(target,))


def num_runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text())


def test_a_done_stage_is_not_run_again(stage: Stage, tmp_path: Path) -> None:
    first, was_done = run_stage(stage, tmp_path, {})
    assert not was_done
    assert run_stage(stage, tmp_path, {}) == (first, True)
    assert num_runs(tmp_path) == 1


def test_it_is_run_again_when_anything_it_depends_on_changes(stage: Stage, tmp_path: Path) -> None:
    needy = replace(stage, needs=("before",))
    run_stage(needy, tmp_path, {"before": Record("a", 1.0, 1)})
    assert run_stage(needy, tmp_path, {"before": Record("a", 2.0, 2)})[1]
    assert not run_stage(needy, tmp_path, {"before": Record("b", 1.0, 1)})[1]
    stage.inputs[0].write_text("second")
    assert not run_stage(needy, tmp_path, {"before": Record("b", 1.0, 1)})[1]
    assert stage.outputs[0].read_text() == "second"
    stage.outputs[0].unlink()
    assert not run_stage(needy, tmp_path, {"before": Record("b", 1.0, 1)})[1]
    other_command = replace(needy, command=(*needy.command, "an argument"))
    assert not run_stage(other_command, tmp_path, {"before": Record("b", 1.0, 1)})[1]
    assert num_runs(tmp_path) == 5


def test_what_an_earlier_run_left_is_removed_unless_it_is_shared(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    program = f"import os; os.makedirs({str(folder)!r}, exist_ok=True)"
    for is_shared in (False, True):
        folder.mkdir(exist_ok=True)
        (folder / "left").touch()
        run_stage(
            Stage(name=f"{is_shared}", title="", command=python(program), outputs=(folder,), is_shared=is_shared),
            tmp_path,
            {},
        )
        assert (folder / "left").exists() == is_shared


def test_a_failure_shows_the_end_of_the_log_and_is_tried_again(tmp_path: Path) -> None:
    program = "print('line 1'); print('the reason'); raise SystemExit(3)"
    failing = Stage(name="fail", title="fail", command=python(program), outputs=())
    for _ in range(2):
        with pytest.raises(StageError, match=r"status 3[\s\S]*the reason"):
            run_stage(failing, tmp_path, {})


def test_a_success_without_its_output_is_a_failure(tmp_path: Path) -> None:
    empty = Stage(name="empty", title="empty", command=python("pass"), outputs=(tmp_path / "missing",))
    with pytest.raises(StageError, match=r"did not make .*missing"):
        run_stage(empty, tmp_path, {})


def in_a_small_process(program: str, work: Path) -> list[str]:
    """The command that runs a stage of ``program`` and prints its peak memory in bytes."""
    runner = (
        "from pathlib import Path; from examples.stages import Stage, run_stage\n"
        f"stage = Stage(name='s', title='', command=({sys.executable!r}, '-c', {program!r}), outputs=())\n"
        f"print(run_stage(stage, Path({str(work)!r}), {{}})[0].peak_memory_bytes)"
    )
    return [sys.executable, "-c", runner]


def test_peak_memory_is_that_of_the_largest_descendant(tmp_path: Path) -> None:
    inner = f"x = bytearray({300 * MIB}); x[::4096] = b'1' * len(x[::4096])"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    command = in_a_small_process(program, tmp_path)
    peak = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert 300 * MIB < peak < 400 * MIB


def test_an_interrupt_stops_the_command_and_its_children(tmp_path: Path) -> None:
    """As under torchrun, the grandchild is in a session of its own and its parent ends it on SIGTERM."""
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (child.kill(), os.waitpid(child.pid, 0), sys.exit(1)))\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} ')\n"
        "child.wait()\n"
    )
    process = subprocess.Popen(in_a_small_process(program, tmp_path), cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (pids.exists() and len(pids.read_text().split(" ")) == 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in error
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
