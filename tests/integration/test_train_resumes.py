"""Going on from a checkpoint that is finished, of other options, damaged or not there: it works or is one line."""

import shutil
from pathlib import Path

import pytest

from tests.workspace import Workspace, make_workspace, train

FOUR = ["--train-iters", "4", "--save-interval", "2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose folder ``run`` holds step 2 of 4."""
    work = make_workspace(tmp_path_factory.mktemp("work"), num_pairs=8)
    finished = train(work, *FOUR, "--exit-interval", "2", "--save", work.folder / "run")
    assert finished.status == 0, finished.output
    return work


@pytest.fixture
def run(work: Workspace, tmp_path: Path) -> Path:
    return shutil.copytree(work.folder / "run", tmp_path / "run")


def test_finished(work: Workspace) -> None:
    finished = train(work, *FOUR, "--train-iters", "2", "--save", work.folder / "run")
    assert finished.status == 0 and "holds step 2 of --train-iters 2" in finished.output
    assert not list((work.folder / "run").glob("iter_0000004"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*FOUR, "--train-iters", "8"], "--override-opt_param-scheduler"),
        ([*FOUR, "--lr", "1e-4"], "Could not find parameter group"),
        ([*FOUR, "--ckpt-step", "7"], "iter_0000007"),
        ([*FOUR, "--such-an-option"], "unrecognized arguments: --such-an-option"),
    ],
    ids=str,
)
def test_other_options(work: Workspace, run: Path, options: list[str], said: str) -> None:
    refused(work, run, options, said)


def test_cut_off(work: Workspace, run: Path) -> None:
    for file in (run / "iter_0000002").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000])
    refused(work, run, FOUR, "holds no whole checkpoint: iter_0000002 has a __0_0.distcp of 1,000 bytes, needs ")


def test_save_where_a_file_is(work: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(work, tmp_path / "file", FOUR, "is not a folder; choose another")


def refused(work: Workspace, save: Path, options: list[str], said: str) -> None:
    finished = train(work, *options, "--save", save)
    lines = [line for line in finished.output.splitlines() if "error:" in line]
    assert finished.status == 2 and len(lines) == 1 and said in lines[0], finished.output
    assert "Traceback" not in finished.output


def test_help(work: Workspace) -> None:
    """No other option is needed; ours come first."""
    finished = train(work, "--help")
    assert finished.status == 0, finished.output
    assert 0 < finished.output.index("--longpo-data") < finished.output.index("--tensor-model-parallel-size")
