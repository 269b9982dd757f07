"""Programs that stand in for the stages' own: they note how they were called, and make what the stage makes.

They show what a script starts, in which order, and what it does with a stop or a failure; nothing of the stages.
"""

import shlex
from pathlib import Path

NOTE = r"""#!/usr/bin/env bash
line=$(printf "%q " "${0##*/}" "$@")
echo "$line" >> {folder}/commands
"""
STAGE = (
    NOTE
    + r"""
words=("$@")
value() { local i; for ((i = 0; i < ${#words[@]}; i++)); do [[ ${words[i]} != "$1" ]] || echo "${words[i + 1]}"; done; }
case " $* " in
*" ${FAIL:-no stage} "*) exit 7 ;;
*" ${HANG:-no stage} "*) trap 'echo stopped >> {folder}/stopped; exit 0' TERM; echo $$ > {folder}/hangs
    while true; do sleep 0.1; done ;;
esac
case " $* " in
*" --shard "*) ;;
*" build "*) mkdir -p "$(dirname "$(value --output)")"; touch "$(value --output).manifest.json" ;;
*.score\ *) touch "$(value --data).reference$([[ $(value --context) == short ]] || echo -long).npz" ;;
*.train\ *) mkdir -p "$(value --save)"; echo "train_iters: 3" > "$(value --save)/arguments.txt"
    echo "${STEPS:-3}" > "$(value --save)/latest_checkpointed_iteration.txt" ;;
*" report "*) mkdir -p "$3"; touch "$3/report.json" ;;
*" evaluate "*) ;;
*) mkdir -p "$(value --output)" ;;
esac
"""
)


def put(folder: Path, **programs: str) -> None:
    """Write programs by their names (``_`` for a hyphen) into ``folder``."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(text.replace("{folder}", shlex.quote(str(folder))), encoding="utf-8")
        path.chmod(0o755)


def commands(folder: Path) -> list[list[str]]:
    """How they were called, and forget it."""
    path = folder / "commands"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [shlex.split(line) for line in lines]
