"""Two torchrun agents, as on two machines, one of which is killed: training goes on from its newest checkpoint.

Both are on this machine and over gloo. A machine that is gone without closing its connections is not shown.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ranks import free_port
from tests.workspace import Workspace, make_workspace, read_metrics, steps_so_far, train, train_argv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--train-iters", "60", "--save-interval", "20", "--context-parallel-size", "2"]


@dataclass
class Job:
    """The agents of one training, all started by the same command."""

    work: Workspace
    save: Path
    port: int = field(default_factory=free_port)
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """One more agent. The first of all hosts the store where they meet."""
        where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self.port}", "--rdzv-id", "job"]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *where]
        command += ["--max-restarts", "3", "-m", "megatron_longpo.train"]
        # Without the first the agent that is left does not tell a new one where the ranks meet (torch 2.15).
        settings = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.save.parent / f"agent{len(self.agents)}.log").open("wb") as log:
            agent = subprocess.Popen(
                [*command, *train_argv(self.work, *OPTIONS, "--save", self.save)],
                env=os.environ | settings, stdout=log, stderr=log,
            )  # fmt: skip
        self.agents.append(agent)
        until(lambda: self._is_hosted() or agent.poll() is not None)
        return agent

    def _is_hosted(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def steps(self) -> list[dict[str, object]]:
        """That were taken so far."""
        return steps_so_far(self.save)


def until(what: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill(agent: subprocess.Popen[bytes]) -> None:
    """As if its machine was gone: the agent and its ranks, which lead sessions of their own."""
    with suppress(FileNotFoundError):  # it has ended
        ranks = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        for pid in (agent.pid, *map(int, ranks)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    agent.wait()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("work"), num_pairs=16)


@pytest.fixture(scope="module")
def whole(work: Workspace) -> list[dict[str, object]]:
    """The steps of a run that nothing stops."""
    finished = train(work, *OPTIONS, "--save", work.folder / "whole", num_ranks=2)
    assert finished.status == 0, finished.output
    return read_metrics(work.folder / "whole" / "metrics.jsonl")


@pytest.fixture
def job(work: Workspace, tmp_path: Path) -> Iterator[Job]:
    job = Job(work, tmp_path / "run")
    yield job
    for agent in job.agents:
        kill(agent)


def test_a_killed_agent_is_started_again_and_the_other_waits_for_it(job: Job, whole: list[dict[str, object]]) -> None:
    first, second = job.start(), job.start()
    until(lambda: len(job.steps()) >= 30)
    kill(second)
    second = job.start()
    assert (first.wait(600), second.wait(600)) == (0, 0)
    assert job.steps() == whole
    assert "resuming from --save" in "".join(path.read_text() for path in job.save.parent.glob("agent*.log"))


def test_without_the_agent_that_hosts_the_store_all_are_started_again(job: Job, whole: list[dict[str, object]]) -> None:
    first, second = job.start(), job.start()
    until(lambda: len(job.steps()) >= 30)
    kill(first)
    assert second.wait(300) == 1
    agents = job.start(), job.start()
    assert [agent.wait(600) for agent in agents] == [0, 0]
    assert job.steps() == whole
