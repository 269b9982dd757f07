"""The jobs for SLURM: what is submitted, and what a job does. sbatch, srun, scontrol and scancel are stand-ins.

tests/integration/test_slurm.py has a real one.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron_longpo.commands.main import main
from tests.unit.launch.programs import NOTE, STAGE, commands, put

ATTEMPT = Path("runs/mistral-7b-128k-2x8x80gb/attempts/001")
HERE = ("--set", "model.hf=hf", "--set", "evaluate.mirror=mirror")
NAMES = [
    *("generate", "generate-merge", "build", "import-hf", "score-reference", "train", "export-hf"),
    *("evaluate-make-ruler", "evaluate-run", "evaluate-report"),
]
SBATCH = NOTE + r'echo "$((40 + $(wc -l < {folder}/commands)));cluster"'
SCONTROL = (
    NOTE
    + """case "$1 $2" in
"show hostnames") printf "node%s\\n" {1..2000} ;;
"show job") echo "   PreemptEligibleTime=2026-11-28T09:22:32 PreemptTime=${PREEMPTED:-None}" ;;
esac
"""
)
SCANCEL = NOTE + "kill $(cat {folder}/hangs)\n"
REQUEUED = ["scontrol", "requeue", "41007"]


@pytest.fixture
def slurm(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins."""
    put(work / "bin", sbatch=SBATCH, srun=STAGE, scontrol=SCONTROL, scancel=SCANCEL)
    monkeypatch.setenv("PATH", f"{work / 'bin'}:{os.environ['PATH']}")
    return work / "bin"


def launch(*words: str) -> int:
    return main(["launch", "mistral-7b-128k.toml", "2x8x80gb.toml", *words, *HERE])


def sbatch_options(name: str) -> dict[str, str]:
    text = (ATTEMPT / f"{name}.sbatch").read_text()
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))


def start(name: str, **variables: str) -> subprocess.Popen[str]:
    """A job as SLURM would run it, by itself."""
    job = {"SLURM_JOB_ID": "41007", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2000]", **variables}
    return subprocess.Popen(
        ["bash", str(ATTEMPT / f"{name}.sbatch")], env=os.environ | job, text=True, stderr=subprocess.PIPE
    )


def test_every_job_waits_for_the_one_before(slurm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch("--set", "machine.partition=big one", "--set", "machine.account=me") == 0
    assert commands(slurm) == [
        ["sbatch", "--parsable", "--kill-on-invalid-dep=yes", *after, f"{ATTEMPT}/{name}.sbatch"]
        for number, name in enumerate(NAMES, start=40)
        for after in ([] if number == 40 else [f"--dependency=afterok:{number}"],)
    ]
    assert capfd.readouterr().out.splitlines()[-2:] == ["evaluate-run: job 49", "evaluate-report: job 50"]
    for name in NAMES:
        found = sbatch_options(name)
        assert (found["partition"], found["account"], found["time"]) == ('"big one"', "me", "24:00:00")
        assert found["job-name"] == f"mistral-7b-128k-2x8x80gb-{name}"
    assert {name: sbatch_options(name)["nodes"] for name in NAMES if sbatch_options(name)["nodes"] != "1"} == {
        "score-reference": "2",
        "train": "2",
    }
    gpus = {name: found for name in NAMES if (found := sbatch_options(name).get("gpus-per-node"))}
    assert gpus == {"generate": "1", "score-reference": "8", "train": "8", "evaluate-run": "1"}
    arrays = {name: found for name in NAMES if (found := sbatch_options(name).get("array"))}
    assert arrays == {"generate": "1-16", "evaluate-run": "1-16"}
    requeued = [name for name in NAMES if "requeue" in sbatch_options(name)]
    assert requeued == ["generate", "score-reference", "train", "evaluate-run"]
    assert {sbatch_options(name)["signal"] for name in requeued} == {"B:USR1@300"}


def test_what_is_done_is_not_submitted(slurm: Path, work: Path) -> None:
    (work / "runs" / "mistral-7b-128k-2x8x80gb" / "imported").mkdir(parents=True)
    assert launch() == 0
    assert [Path(words[-1]).stem for words in commands(slurm)] == [name for name in NAMES if name != "import-hf"]


def test_ranks_meet_on_the_first_machine_of_the_job(slurm: Path) -> None:
    assert launch("--dry-run") == 0
    assert start("train").wait() == 0
    (scontrol, srun) = commands(slurm)
    assert scontrol == ["scontrol", "show", "hostnames", "node[1-2000]"]
    where = ["--rdzv-backend", "c10d", "--rdzv-id", "41007", "--rdzv-endpoint", "node1:21007"]
    assert srun[:6] == ["srun", "torchrun", "--nnodes", "2", "--nproc-per-node", "8"] and srun[6:12] == where
    assert srun[12:14] == ["-m", "megatron_longpo.train"] and "--exit-signal-handler" in srun
    assert start("train").wait() == 0  # the last step is there
    assert commands(slurm) == []


def test_a_job_of_an_array_does_its_shard_beside_the_others(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch("--dry-run") == 0
    monkeypatch.setenv("HANG", "4/16")
    other = start("generate", SLURM_ARRAY_TASK_ID="4", SLURM_ARRAY_JOB_ID="41000")
    wait_for(slurm / "hangs")
    assert start("generate", SLURM_ARRAY_TASK_ID="5", SLURM_ARRAY_JOB_ID="41000").wait() == 0
    assert [words[-2:] for words in commands(slurm)] == [["--shard", "4/16"], ["--shard", "5/16"]]
    alone = start("build")
    assert "in use by another run" in alone.communicate()[1] and alone.returncode == 75
    os.kill(int((slurm / "hangs").read_text()), signal.SIGTERM)  # SLURM sends it to all
    other.terminate()
    assert other.wait() == 143


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("name", "number", "is_requeued"),
    [
        ("train", signal.SIGUSR1, True),
        ("train", signal.SIGTERM, False),  # scancel's
        ("evaluate-run", signal.SIGUSR1, True),
    ],
)
def test_a_job_that_runs_out_of_time_is_stopped_and_requeued(
    slurm: Path, work: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: signal.Signals, is_requeued: bool
) -> None:
    assert launch("--dry-run") == 0
    monkeypatch.setenv("HANG", "megatron_longpo.train" if name == "train" else "run")
    job = start(name, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="41000")
    wait_for(slurm / "hangs")
    saved(work)
    if number == signal.SIGTERM:  # SLURM sends it to all
        os.kill(int((slurm / "hangs").read_text()), number)
    job.send_signal(number)
    assert job.wait() == 143
    assert (slurm / "stopped").read_text() == "stopped\n"
    job_id = "41007" if name == "train" else "41000_2"  # the array may have the number 41007, too
    called = commands(slurm)
    assert (["scancel", "--signal=TERM", job_id] in called) == is_requeued
    assert [words for words in called if words[1] == "requeue"] == [["scontrol", "requeue", job_id]] * is_requeued


def saved(work: Path, step: int = 2) -> None:
    """Let training, and evaluating, have got on."""
    run = work / "runs" / "mistral-7b-128k-2x8x80gb"
    for path, text in ((run / "run" / "latest_checkpointed_iteration.txt", str(step)), (run / "evaluation" / "a", "a")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text * (1 if path.suffix else 9999))


def test_a_job_that_got_nowhere_in_its_time_is_not_requeued(
    slurm: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch("--dry-run") == 0
    monkeypatch.setenv("HANG", "megatron_longpo.train")
    saved(work)
    job = start("train")
    wait_for(slurm / "hangs")
    job.send_signal(signal.SIGUSR1)
    assert "train got nowhere in its time, and is not requeued; raise" in job.communicate()[1]
    assert REQUEUED not in commands(slurm)


@pytest.mark.parametrize(("preempted", "is_requeued"), [("2026-11-28T09:22:35", True), ("None", False)])
def test_a_job_that_ends_in_its_grace_time_is_requeued(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, preempted: str, is_requeued: bool
) -> None:
    """SLURM stops what the job runs, and its shell hears nothing."""
    assert launch("--dry-run") == 0
    monkeypatch.setenv("PREEMPTED", preempted)
    assert start("train", FAIL="megatron_longpo.train").wait() == 7
    assert (REQUEUED in commands(slurm)) == is_requeued


def test_a_step_of_a_job_has_the_processors_that_the_job_asked_for(slurm: Path) -> None:
    put(slurm, srun='#!/usr/bin/env bash\necho "${SRUN_CPUS_PER_TASK-unset}" > {folder}/processors\n')
    assert launch("--dry-run") == 0
    for given, found in (({"SLURM_CPUS_PER_TASK": "16"}, "16\n"), ({}, "unset\n")):
        start("train", **given).wait()
        assert (slurm / "processors").read_text() == found


def test_training_that_stopped_by_itself_is_requeued(slurm: Path) -> None:
    assert launch("--dry-run") == 0
    assert start("train", STEPS="2").wait() == 75
    assert commands(slurm)[-1] == REQUEUED
    assert start("train", STEPS="2").wait() == 75  # and again, from step 2 to step 2
    assert REQUEUED not in commands(slurm)


def test_a_failure_is_not_requeued(slurm: Path) -> None:
    assert launch("--dry-run") == 0
    job = start("train", FAIL="megatron_longpo.train")
    assert "train ended with status 7" in job.communicate()[1] and job.returncode == 7
    assert REQUEUED not in commands(slurm)


def test_without_slurm_nothing_is_submitted(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(work))
    assert launch() == 2
    assert "there is no sbatch here" in capsys.readouterr().err


def test_a_quote_in_an_option_of_sbatch_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--dry-run", "--set", 'machine.comment=a "b"') == 2
    assert "sbatch takes no double quote" in capsys.readouterr().err
