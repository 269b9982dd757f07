"""A SLURM of one's own: munged, slurmctld and two slurmd on this machine, in one folder, on free ports.

Debian: apt-get install slurmctld slurmd slurm-client munge. No systemd, no cgroups and no database are needed; who
starts it owns it. Both nodes are this machine: the first has its name, so that ranks can meet there.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ranks import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian has daemons
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
GRACE_S = 90
"""From a preempted job's first TERM to its end, in the partition ``low``."""

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
# A job that is requeued waits until its old credential is void: by default for two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
# As on many clusters: a step is bound to the cores that it asks for, not to those of its job.
TaskPluginParam=cores
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
# Finished jobs are asked for until the end of the tests.
MinJobAge=7200
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
{nodes}
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of every process that asks it."""
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def run(self, *words: object) -> str:
        """What one of SLURM's commands prints.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        command = [*map(str, words)]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def clear(self) -> None:
        """End all jobs."""
        self.run("scancel", "--user", getpass.getuser())
        self.wait(90, lambda: _is_idle(self))

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, or of one of an array, ``NUMBER_INDEX``."""
        return dict(field.split("=", 1) for field in self.run("scontrol", "--oneliner", "show", "job", job).split()
                    if "=" in field)  # fmt: skip

    def wait(self, seconds: float, what: Callable[[], bool]) -> None:
        """Until that is so.

        Raises:
            TimeoutError: it is not, after so many seconds; the message has all jobs.
        """
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(self.run("scontrol", "--oneliner", "show", "job"))
            time.sleep(0.5)

    def wait_for(self, job: str, state: str, seconds: float = 600.0) -> dict[str, str]:
        """Until the job is in that state; returns what is known of it then.

        Raises:
            TimeoutError: as `wait`, and as soon as it has ended in another state.
        """
        self.wait(seconds, lambda: self.job(job)["JobState"] in (state, "COMPLETED", "FAILED", "CANCELLED"))
        self.wait(0, lambda: self.job(job)["JobState"] == state)
        return self.job(job)


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Start it in ``folder``, and end it with all its jobs."""
    slurm, daemons = Slurm(folder), list[subprocess.Popen[bytes]]()
    _configure(folder)
    munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "seed-file", "pid-file", "log-file")]
    commands = [["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *munge]]
    commands += [["slurmctld", "-D"], *(["slurmd", "-D", "-N", name] for name in _names())]
    try:
        with (folder / "daemons.log").open("wb") as log:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log))
                time.sleep(0.5)
        slurm.wait(60, lambda: _is_idle(slurm))
        yield slurm
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def _names() -> tuple[str, str]:
    return socket.gethostname(), f"{socket.gethostname()}-2"


def _is_idle(slurm: Slurm) -> bool:
    found = subprocess.run(["sinfo", "--noheader", "--format=%D %T", "--partition=low"],
                           env=slurm.environment, check=False, capture_output=True, text=True)  # fmt: skip
    return found.stdout == "2 idle\n"


def _configure(folder: Path) -> None:
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir()
    (folder / "gpu").touch()  # what stands for a GPU need only be a file
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu\n")
    hardware = subprocess.run(
        ["slurmd", "-C"], env=os.environ | {"PATH": PATH}, check=True, capture_output=True, text=True
    )
    fields = [field for field in hardware.stdout.splitlines()[0].split() if not field.startswith("NodeName=")]
    here = f"NodeAddr=127.0.0.1 NodeHostname={socket.gethostname()} Gres=gpu:1 {' '.join(fields)}"
    nodes = [f"NodeName={name} Port={free_port()} {here}" for name in _names()]
    text = CONF.format(
        host=socket.gethostname(), port=free_port(), folder=folder, user=getpass.getuser(), grace=GRACE_S,
        nodes="\n".join(nodes),
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
