"""commands.sh as bash runs it: stages in order, once; what a failure and a stop do. Its programs are stand-ins."""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_longpo.commands.main import main
from tests.unit.launch.programs import STAGE, commands, put

RUN = Path("runs/mistral-7b-128k")
HERE = ("--set", "model.hf=hf", "--set", "evaluate.mirror=mirror")


@pytest.fixture
def programs(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins, which launch takes for that of its own Python."""
    put(work / "bin", megatron_longpo=STAGE, torchrun=STAGE)
    monkeypatch.setattr(sys, "executable", str(work / "bin" / "python"))
    return work / "bin"


def launch(*words: str) -> int:
    return main(["launch", "mistral-7b-128k.toml", *HERE, *words])


def stages(calls: list[list[str]]) -> list[str]:
    """What was called, in a word or two each."""
    names = []
    for program, *words in calls:
        if program == "torchrun":
            assert words[:4] == ["--standalone", "--nproc-per-node", "8", "-m"]
            names.append(words[4].rpartition(".")[2])
        else:
            names.append(" ".join(words[: 2 if words[0] == "evaluate" else 1]))
    return names


def test_all_stages_in_order_and_none_twice(programs: Path) -> None:
    assert launch() == 0
    called = commands(programs)
    assert [*dict.fromkeys(stages(called))] == [
        *("generate", "build", "import-hf", "score", "train", "export-hf"),
        *("evaluate make-ruler", "evaluate run", "evaluate report"),
    ]
    shards = sorted(words[words.index("--shard") + 1] for words in called if "--shard" in words)
    assert shards == [f"{number}/8" for number in range(1, 9)]
    assert ["--merge", "8"] in [words[-2:] for words in called]
    assert stages(called).count("evaluate run") == 8  # a process a GPU; each makes the cells that no other makes
    assert launch() == 0
    assert commands(programs) == []


def test_many_shards_share_few_gpus(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STAGE.replace("line=", 'echo "$CUDA_VISIBLE_DEVICES" >> {folder}/gpus; line=', 1)
    put(programs, megatron_longpo=text)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    words = ("--set", "machine.gpus-per-node=2", "--set", "machine.generate-jobs=5", "--set", "evaluate=false")
    words = (*words, "--set", "train.context-parallel-size=2", "--set", "train=false", "--set", "export-hf=false")
    assert launch(*words, "--set", "score-reference=false", "--set", "build=false", "--set", "import-hf=false") == 0
    called = commands(programs)
    assert sorted(words[-1] for words in called[:5]) == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert called[5][-2:] == ["--merge", "5"] and len(called) == 6
    gpus = (programs / "gpus").read_text().split()
    assert (gpus.count("3"), gpus.count("5"), gpus[5]) == (3, 2, "3,5")


def test_a_failure_ends_the_run_with_its_status(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "import-hf")
    assert launch() == 7
    assert capfd.readouterr().err.splitlines()[-1] == "mistral-7b-128k: import-hf ended with status 7"
    assert stages(commands(programs))[-1] == "import-hf"
    monkeypatch.delenv("FAIL")
    assert launch() == 0
    assert stages(commands(programs))[:2] == ["import-hf", "score"]


def test_training_that_stops_before_its_last_step_is_not_exported(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEPS", "2")
    assert launch() == 1
    assert "train stopped before its end; run this again to go on" in capfd.readouterr().err
    assert stages(commands(programs))[-1] == "train"
    monkeypatch.delenv("STEPS")
    assert os.waitstatus_to_exitcode(os.system(f"bash {RUN}/attempts/latest/commands.sh")) == 0
    assert stages(commands(programs))[:2] == ["train", "export-hf"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["build", "megatron_longpo.train", "run"])
def test_a_stop_reaches_the_stage_which_is_waited_for(
    programs: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: signal.Signals
) -> None:
    monkeypatch.setenv("HANG", stage)

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not (programs / "hangs").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert launch() == 143
    thread.join()
    stopped = (programs / "stopped").read_text().splitlines()
    assert len(stopped) == (8 if stage == "run" else 1)
    assert stages(commands(programs))[-1] == {"build": "build", "run": "evaluate run"}.get(stage, "train")


def test_a_script_run_by_hand_does_not_share_a_folder(programs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch("--dry-run") == 0
    script = RUN / "attempts" / "latest" / "commands.sh"
    descriptor = os.open(RUN / "attempts", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert os.waitstatus_to_exitcode(os.system(f"bash {script}")) == 75
    assert "mistral-7b-128k: in use by another run" in capfd.readouterr().err
    assert commands(programs) == []
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.system(f"cd / && bash {script.resolve()}")) == 0
    assert len(commands(programs)) > 10
