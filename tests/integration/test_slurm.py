"""The jobs of ``launch`` on a real SLURM: they run in order, and what stops them costs no step.

Not shown: more machines than one, a GPU, a file system that machines share.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples.miniature import make_texts
from examples.miniature.methods import METHODS, generate_options, train_options
from examples.miniature.run import BASE
from megatron_longpo.launch.recipe import Recipe, Section, dump
from tests.integration.real_slurm import GRACE_S, MISSING, Slurm, cluster
from tests.unit.evaluate.making_mirrors import make_mirror
from tests.workspace import steps_so_far

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}; Debian: slurmctld slurmd munge"),
]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
NUM_TEXTS = 200


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(autouse=True)
def _jobs_end_with_the_test(slurm: Slurm) -> Iterator[None]:
    yield
    slurm.clear()


@dataclass(frozen=True)
class Launched:
    """A run whose jobs are submitted."""

    slurm: Slurm
    folder: Path
    jobs: dict[str, str] = field(default_factory=dict)
    """Stage -> number of its job."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "run"

    @property
    def saved(self) -> int:
        """The step of the last checkpoint; 0 without one."""
        tracker = self.checkpoints / "latest_checkpointed_iteration.txt"
        return int(tracker.read_text()) if tracker.exists() else 0

    @property
    def steps(self) -> list[dict[str, object]]:
        """What training wrote of its steps."""
        return steps_so_far(self.checkpoints)

    def log(self, stage: str) -> str:
        return "".join(path.read_text() for path in (self.folder / "attempts" / "latest").glob(f"*-{stage}-*.log"))

    def wait_for_steps(self, num_steps: int) -> None:
        """Until so many more are taken."""
        num_before = len(self.steps)
        self.slurm.wait(180, lambda: len(self.steps) >= num_before + num_steps)


def launch(slurm: Slurm, work: Path, run: str, *settings: str) -> Launched:
    """Run the verb in a process of its own, as one would on a cluster's machine."""
    words = [word for setting in (f"run.folder=runs/{run}", *settings) for word in ("--set", setting)]
    # The jobs are processes that run elsewhere: this checkout's package, wherever the environment has another.
    settings_of_jobs = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_longpo.commands.main", "launch", "recipe.toml", *words],
        env=slurm.environment | settings_of_jobs, cwd=work, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (line.split(": job ") for line in done.stdout.splitlines() if ": job " in line)
    return Launched(slurm, work / "runs" / run, dict(lines))


def section(words: list[str]) -> Section:
    """Options of a command line as a section of a recipe."""
    options: dict[str, list[str | int | float]] = {}
    for word in words:
        if word.startswith("--"):
            options[word[2:]] = []
        else:
            options[[*options][-1]].append(word)
    return {name: values[0] if len(values) == 1 else values for name, values in options.items()}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to launch from: texts, questions and a recipe for two machines with a rank each."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make_texts", "--output", str(work / "texts"), "--num-texts", str(NUM_TEXTS)])
        make_texts.main()
    make_mirror(work / "mirror")
    generate = section(generate_options(BASE, work / "texts"))
    train = section(train_options(METHODS["longpo"], {"lr": 2e-3, "longpo-beta": 0.1, "longpo-pref-coef": 0.1}))
    sections: dict[str, Section] = {
        "model": {"hf": str(BASE)},
        "machine": {"launcher": "slurm", "nodes": 2, "gpus-per-node": 1, "cpus-per-task": 2, "time": "1:00:00"},
        "generate": {name: value for name, value in generate.items() if name != "model"},
        "build": {"max-length": int(str(generate["length"]))},
        "import-hf": {},
        "score-reference": {},
        "train": train | {"train-iters": STEPS, "context-parallel-size": 2},
        "export-hf": {},
        "evaluate": {
            "mirror": "mirror",
            "suite": "infinitebench",
            "limit": 2,
            "models": ["trained=runs/whole/exported"],
            "tasks": "infinitebench_en_qa,infinitebench_en_mc",
        },
    }
    (work / "recipe.toml").write_text(dump(Recipe(sections)))
    return work


@pytest.fixture(scope="module")
def whole(slurm: Slurm, work: Path) -> Launched:
    """A run that nothing stopped."""
    run = launch(slurm, work, "whole")
    slurm.wait_for(run.jobs["evaluate-report"], "COMPLETED", 1200)
    return run


def again(slurm: Slurm, work: Path, whole: Launched, name: str, *settings: str) -> Launched:
    """Training and export once more, from the dataset, the model and the scores of the whole run."""
    for part in ("data", "imported"):
        shutil.copytree(whole.folder / part, work / "runs" / name / part)
    shutil.copy(whole.folder / "pairs.jsonl", work / "runs" / name)
    return launch(slurm, work, name, "evaluate=false", *settings)


def test_every_job_runs_when_the_one_before_has_ended(slurm: Slurm, work: Path, whole: Launched) -> None:
    jobs = [slurm.job(number) for number in whole.jobs.values()]
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * len(jobs)
    assert [*whole.jobs] == [
        *("generate", "generate-merge", "build", "import-hf", "score-reference", "train", "export-hf"),
        *("evaluate-run", "evaluate-report"),
    ]
    ends = [job["EndTime"] for job in jobs]
    assert all(job["StartTime"] >= end for job, end in zip(jobs[1:], ends, strict=False))
    assert len(whole.steps) == whole.saved == STEPS
    report = json.loads((whole.folder / "evaluation" / "report.json").read_text())
    assert report
    assert launch(slurm, work, "whole").jobs == {}  # nothing left to do


def test_one_job_of_an_array_is_stopped_and_requeued_alone(slurm: Slurm, work: Path, whole: Launched) -> None:
    """The last one of an array, whose job ID is that of the whole array."""
    rest = ("build", "import-hf", "score-reference", "train", "export-hf", "evaluate")
    run = launch(slurm, work, "array", *(f"{stage}=false" for stage in rest))
    array = run.jobs["generate"]
    slurm.wait(
        120, lambda: any("answer" in path.read_text() for path in run.folder.glob("pairs.jsonl.journal/*2-of-2*"))
    )
    assert slurm.job(f"{array}_2")["JobId"] == array
    signal_time(slurm, f"{array}_2")
    for index, restarts in (("1", "0"), ("2", "1")):
        assert slurm.wait_for(f"{array}_{index}", "COMPLETED")["Restarts"] == restarts
    slurm.wait_for(run.jobs["generate-merge"], "COMPLETED")
    assert (run.folder / "pairs.jsonl").read_bytes() == (whole.folder / "pairs.jsonl").read_bytes()


def signal_time(slurm: Slurm, job: str) -> None:
    """What SLURM sends 300 seconds before a job's time is up."""
    slurm.run("scancel", "--batch", "--signal=USR1", job)


def processors_of_ranks(save: str) -> list[int]:
    """How many processors each rank of a training may run on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            words = path.read_text().split("\0")
            if "megatron_longpo.train" in words and save in words and "--nnodes" not in words:
                found.append(len(os.sched_getaffinity(int(path.parent.name))))
    return found


def is_requeued(job: dict[str, str], times: int) -> bool:
    """SLURM counts a requeue when it decides on it; the job may still be saving then."""
    return job["Restarts"] == str(times) and job["JobState"] in ("PENDING", "RUNNING")


def end_time(slurm: Slurm, job: str) -> None:
    """Let a job's time be nearly up, and the next run's not."""
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    slurm.wait_for(job, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")


def preempt(slurm: Slurm, grace_s: int) -> None:
    """Submit a job that needs both machines and comes first."""
    slurm.run("scontrol", "update", "PartitionName=low", f"GraceTime={grace_s}")
    slurm.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def test_training_that_is_stopped_three_times_takes_the_same_steps(slurm: Slurm, work: Path, whole: Launched) -> None:
    run = again(slurm, work, whole, "stopped")
    train = run.jobs["train"]
    stops: list[Callable[[], None]] = [
        lambda: end_time(slurm, train),
        lambda: preempt(slurm, grace_s=GRACE_S),  # its shell hears nothing
        lambda: preempt(slurm, grace_s=0),
    ]
    for restarts, stop in enumerate(stops, start=1):
        run.wait_for_steps(20)
        num_steps = len(run.steps)
        assert processors_of_ranks("runs/stopped/run") == [2, 2]  # cpus-per-task
        stop()
        slurm.wait(180, lambda restarts=restarts: is_requeued(slurm.job(train), restarts))
        assert num_steps <= run.saved == len(run.steps) < STEPS
    assert slurm.wait_for(train, "COMPLETED")["Restarts"] == "3"
    assert run.steps == whole.steps
    slurm.wait_for(run.jobs["export-hf"], "COMPLETED")
    attempts = run.folder / "attempts"
    assert sorted(path.name for path in attempts.iterdir()) == ["001", "latest"]  # a requeue is none
    assert [path.name for path in attempts.glob("001/*-train-*.log")] == [f"stopped-train-{train}.log"]


def test_what_is_cancelled_or_gets_nowhere_is_not_requeued(slurm: Slurm, work: Path, whole: Launched) -> None:
    run = again(slurm, work, whole, "cancelled")
    train = run.jobs["train"]
    slurm.wait(120, lambda: bool(slurm.run("squeue", "--steps", "--noheader", "--jobs", train)))
    signal_time(slurm, train)  # before the first step
    assert slurm.wait_for(train, "FAILED")["Restarts"] == "0"
    assert "train got nowhere in its time, and is not requeued" in run.log("train")
    slurm.wait_for(run.jobs["export-hf"], "CANCELLED")

    run = launch(slurm, work, "cancelled", "evaluate=false")
    assert [*run.jobs] == ["train", "export-hf"]
    run.wait_for_steps(20)
    slurm.run("scancel", run.jobs["train"])
    assert slurm.wait_for(run.jobs["train"], "CANCELLED")["Restarts"] == "0"
    slurm.wait_for(run.jobs["export-hf"], "CANCELLED")
    assert 20 <= run.saved == len(run.steps) < STEPS

    run = launch(slurm, work, "cancelled", "evaluate=false")
    slurm.wait_for(run.jobs["train"], "COMPLETED")
    assert run.steps == whole.steps
    assert (run.folder / "attempts" / "latest").resolve().name == "003"
