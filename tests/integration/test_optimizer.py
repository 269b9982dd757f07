"""--longpo-optimizer rmsprop in training: with and without the distributed optimizer, resumed and resharded."""

import shutil
from pathlib import Path

import pytest

from megatron_longpo.hf.torch_dist import CheckpointReader
from tests.workspace import Workspace, make_workspace, read_metrics, train

DISTRIBUTED = "--use-distributed-optimizer"
RMSPROP = ["--longpo-optimizer", "rmsprop"]
TEN = ["--lr", "1e-4", "--train-iters", "10", "--save-interval", "5"]
COMPARED = ("loss", "nll", "preference_loss", "policy_chosen_logp", "policy_rejected_logp")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def plain(work: Workspace) -> Path:
    """Ten steps in one go, without the distributed optimizer."""
    return run(work, work.folder / "plain")


@pytest.fixture(scope="module")
def distributed(work: Workspace) -> Path:
    """Ten steps in one go, with it."""
    return run(work, work.folder / "distributed", DISTRIBUTED)


@pytest.fixture(scope="module")
def half(work: Workspace) -> Path:
    """Five steps of two data-parallel ranks with the distributed optimizer."""
    return run(work, work.folder / "half", DISTRIBUTED, "--exit-interval", "5", num_ranks=2)


def run(work: Workspace, folder: Path, *options: str, num_ranks: int = 1, optimizer: list[str] = RMSPROP) -> Path:
    """Train into ``folder`` and return it."""
    finished = train(
        work, "--save", folder, "--longpo-metrics", folder / "m.jsonl", *TEN, *optimizer, *options, num_ranks=num_ranks
    )
    assert finished.status == 0, finished.output
    return folder


def assert_same_course(ours: Path, theirs: Path) -> None:
    """1e-6: fp32 sums in another order."""
    ours_lines, theirs_lines = read_metrics(ours / "m.jsonl"), read_metrics(theirs / "m.jsonl")
    assert [line["step"] for line in ours_lines] == list(range(1, 11))
    for line, expected in zip(ours_lines, theirs_lines, strict=True):
        for name in COMPARED:
            assert line[name] == pytest.approx(expected[name], rel=1e-6), (line["step"], name)


def test_it_is_not_adam(work: Workspace, plain: Path) -> None:
    adam = run(work, work.folder / "adam", "--weight-decay", "0", "--exit-interval", "2", optimizer=[])
    first, second = (read_metrics(folder / "m.jsonl") for folder in (plain, adam))
    assert first[0]["nll"] == second[0]["nll"]
    assert first[1]["nll"] < second[1]["nll"] - 0.01  # a first step ten times as long


def test_with_and_without_the_distributed_optimizer(plain: Path, distributed: Path) -> None:
    assert_same_course(distributed, plain)


@pytest.mark.parametrize(
    "options", [pytest.param([], marks=pytest.mark.slow), [DISTRIBUTED]], ids=["plain", "distributed"]
)
def test_resumes_bit_for_bit(work: Workspace, options: list[str], request: pytest.FixtureRequest) -> None:
    """Five steps, then the same command again."""
    name = request.node.callspec.id
    folder = work.folder / f"{name}-resumed"
    run(work, folder, *options, "--exit-interval", "5")
    run(work, folder, *options)
    straight = request.getfixturevalue(name)
    assert read_metrics(folder / "m.jsonl") == read_metrics(straight / "m.jsonl")


@pytest.mark.parametrize(
    "layout, num_ranks",
    [
        (["--tensor-model-parallel-size", "2", "--sequence-parallel"], 2),
        pytest.param([], 1, marks=pytest.mark.slow),
    ],
    ids=["tp2", "one-rank"],
)
def test_resumes_in_another_layout(
    work: Workspace, plain: Path, half: Path, layout: list[str], num_ranks: int, tmp_path: Path
) -> None:
    shutil.copytree(half, tmp_path / "run")
    run(work, tmp_path / "run", DISTRIBUTED, *layout, num_ranks=num_ranks)
    assert_same_course(tmp_path / "run", plain)


@pytest.mark.parametrize("kind, main_weights", [("plain", []), ("distributed", ["param"])])
def test_a_checkpoint_holds_one_state_a_parameter(
    kind: str, main_weights: list[str], request: pytest.FixtureRequest
) -> None:
    """And nothing else but, under the distributed optimizer, the main weights."""
    names = CheckpointReader(request.getfixturevalue(kind) / "iter_0000010").keys()
    weights = [name for name in names if not name.startswith("optimizer.")]
    assert len(weights) > 5
    states = [f"optimizer.state.{state}.{weight}" for state in ("square_avg", *main_weights) for weight in weights]
    assert sorted(states) == [name for name in names if name.startswith("optimizer.")]


def test_goes_on_with_its_own_optimizer_only(work: Workspace, plain: Path) -> None:
    finished = train(work, "--load", plain, "--lr", "1e-4", "--train-iters", "10")
    assert finished.status == 2 and "is rmsprop: add --longpo-optimizer rmsprop, or start" in finished.output
    assert "Traceback" not in finished.output
