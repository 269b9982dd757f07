"""Which checkpoint of a run is gone on from."""

from pathlib import Path

import pytest
import torch

from megatron_longpo.hf.folder import TRACKER_FILE, newest_whole
from megatron_longpo.hf.torch_dist import Chunk, write_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three checkpoints, the last of them named by the tracker."""
    for step in (2, 4, 6):
        folder = tmp_path / f"iter_{step:07d}"
        folder.mkdir()
        write_checkpoint(folder, [Chunk("w", (2,), (0,), (2,), torch.float32, lambda: torch.ones(2))], [], {})
    (tmp_path / TRACKER_FILE).write_text("6")
    return tmp_path


def test_the_trackers(run: Path) -> None:
    assert newest_whole(run) == (6, [])
    (run / TRACKER_FILE).write_text("4")  # the run went back; what is later is of another course
    assert newest_whole(run) == (4, [])
    (run / TRACKER_FILE).write_text("release")
    assert newest_whole(run) == (0, [])


def test_those_that_are_not_whole_are_passed_over(run: Path) -> None:
    (run / "iter_0000006" / ".metadata").unlink()
    (run / "iter_0000004" / "metadata.json").unlink()
    assert newest_whole(run) == (2, ["iter_0000006 lacks .metadata", "iter_0000004 lacks metadata.json"])
    (run / "iter_0000002" / ".metadata").unlink()
    step, faults = newest_whole(run)
    assert step is None and len(faults) == 3


@pytest.mark.parametrize(("text", "fault"), [(None, "is not there"), ("", "holds ''"), ("6\x00", "holds '6\\x00'")])
def test_a_tracker_that_cannot_be_read(run: Path, text: str | None, fault: str) -> None:
    """As a full disk leaves it: Megatron truncates it before it writes."""
    (run / TRACKER_FILE).unlink() if text is None else (run / TRACKER_FILE).write_text(text)
    assert newest_whole(run) == (6, [f"{TRACKER_FILE} {fault}"])


def test_a_tracker_of_a_folder_that_is_gone(run: Path) -> None:
    (run / TRACKER_FILE).write_text("5")
    assert newest_whole(run) == (4, ["iter_0000005 is not there"])
