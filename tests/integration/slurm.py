"""A SLURM of shell scripts that runs what is submitted and notes the commands."""

import os
import shlex
import subprocess
from pathlib import Path

SBATCH = r"""#!/usr/bin/env bash
printf "%q " sbatch "$@" >> "$COMMANDS"; echo >> "$COMMANDS"
indices=
while [[ $1 == --* ]]; do
    case $1 in --array=*) range=${1#--array=}; range=${range%\%*}; indices=$(seq "${range%-*}" "${range#*-}") ;; esac
    shift
done
export SLURM_JOB_ID=41
for index in ${indices:-none}; do SLURM_ARRAY_TASK_ID=$index bash "$@" >&2; done
echo "41;cluster"
"""
SRUN = '#!/usr/bin/env bash\nprintf "%q " "$@" >> "$COMMANDS"\necho >> "$COMMANDS"\n'


def commands(script: Path, folder: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """What the script submits and runs, in that order, word by word."""
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    settings = {"PATH": f"{folder}:{os.environ['PATH']}", "COMMANDS": f"{folder}/commands", **environment}
    subprocess.run(["bash", str(script), *arguments], env=os.environ | settings, cwd=folder, check=True)
    return [shlex.split(line) for line in (folder / "commands").read_text().splitlines()]
