"""metrics_file.py: a run adds to its files and drops what is its own and no longer holds; nothing else is touched."""

import json
import os
import threading
from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.metrics_file import check_metrics_file, open_metrics


def line(step: int, loss: float = 1.0, split: str = "train") -> str:
    return json.dumps({"step": step, "split": split, "loss": loss}) + "\n"


def lines(*steps: int, loss: float = 1.0) -> str:
    return "".join(line(step, loss) for step in steps)


def add(beside: Path | None, asked_for: Path | None, resume_step: int, evaluates_only: bool = False) -> None:
    """Open the files as a run does, write one line to each and close them."""
    for file in open_metrics(beside, asked_for, resume_step, evaluates_only):
        with file:
            file.write(line(resume_step + 1, loss=9.0))


def test_new_files_and_their_folders(tmp_path: Path) -> None:
    add(tmp_path / "run" / "metrics.jsonl", tmp_path / "far" / "off" / "m.jsonl", 0)
    for path in (tmp_path / "run" / "metrics.jsonl", tmp_path / "far" / "off" / "m.jsonl"):
        assert path.read_text() == line(1, 9.0)


def test_one_file_by_two_names_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "run" / "metrics.jsonl")
    add(tmp_path / "run" / "metrics.jsonl", tmp_path / "link.jsonl", 0)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == line(1, 9.0)
    assert (tmp_path / "link.jsonl").is_symlink()


def test_later_steps_of_a_run_that_died_are_dropped_from_both(tmp_path: Path) -> None:
    beside, asked_for = tmp_path / "metrics.jsonl", tmp_path / "m.jsonl"
    for path in (beside, asked_for):
        path.write_text(lines(1, 2, 3) + '{"step": 4, "spl')  # cut by the kill
    add(beside, asked_for, 2)
    assert beside.read_text() == asked_for.read_text() == lines(1, 2) + line(3, 9.0)


@pytest.mark.parametrize("beside", [None, "metrics.jsonl"])
def test_lines_of_another_run_are_never_dropped(tmp_path: Path, beside: str | None) -> None:
    theirs = tmp_path / "m.jsonl"
    theirs.write_text(lines(1, 2, 3, loss=5.0))
    own = tmp_path / beside if beside else None
    if own is None:
        with pytest.raises(UserError, match="holds 1 lines beyond step 2 that are not of this run"):
            add(own, theirs, 2)
    else:
        own.write_text(lines(1, 2, 3))
        with pytest.raises(UserError, match="holds 1 lines beyond step 2 that are not of this run"):
            add(own, theirs, 2)
    assert theirs.read_text() == lines(1, 2, 3, loss=5.0)


def test_evaluating_adds_to_a_finished_runs_metrics(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(lines(1, 2, 3))
    add(None, path, 0, evaluates_only=True)
    assert path.read_text() == lines(1, 2, 3) + line(1, 9.0)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.jsonl", tmp_path / "m.jsonl"
    target.write_text(lines(1, 2, 3))
    link.symlink_to(target)
    beside = tmp_path / "metrics.jsonl"
    beside.write_text(lines(1, 2, 3))
    add(beside, link, 1)
    assert link.is_symlink() and target.read_text() == line(1) + line(2, 9.0)


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_metrics_file(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    add(None, pipe, 0)
    reader.join(timeout=10)
    assert read == [line(1, 9.0)] and pipe.is_fifo()


@pytest.mark.parametrize(
    "content", [b"name,age\n", b'{"a": 1}\n', b'{"step": "one", "split": "train"}\n', b"no line end", b"\xff\xfe\n"]
)
def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "theirs"
    path.write_bytes(content)
    with pytest.raises(UserError, match="choose another"):
        check_metrics_file(path)
    with pytest.raises(UserError, match="choose another"):
        add(None, path, 0)
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give a file"):
        check_metrics_file(tmp_path)


def test_only_a_cut_first_line(tmp_path: Path) -> None:
    """A kill while the first line was written leaves its beginning."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "spl')
    add(None, path, 0)
    assert path.read_text() == line(1, 9.0)
