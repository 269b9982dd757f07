"""Programs that stand in for Python, pip, uv and df, so that the scripts run in milliseconds and without a network."""

from pathlib import Path


def stand_in(path: Path, does: str) -> Path:
    """A program at ``path`` that does that when it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


# Each step is noted in the file $STEPS; at the step $AT, if set, it does $DOES before.
STEP = """step() { echo "$1" >>"$STEPS"; [ "$1" != "$AT" ] || eval "$DOES"; }"""

UV = f"""{STEP}
case "$1 $2 $3" in
    "cache dir "*) echo "$CACHE" ;;
    "pip install --dry-run") echo "${{DRY_RUN:-Would install 1 package}}" ;;
    "pip sync"*) step sync ;;
    "pip install"*) step editable; touch .venv/installed ;;
esac"""

VENV_PYTHON = f"""{STEP}
case "$*" in
    "-m pip config list") printf '%s' "$PIP_SETTINGS" ;;
    "-m pip install "*) step pip; cp "$STAND_INS/uv" .venv/bin/uv ;;
    "-I -c import megatron_longpo") [ -e .venv/installed ] ;;
esac"""

PYTHON = f"""{STEP}
case "$1" in
    -c) echo "$0" ;;
    -m) step venv; mkdir -p .venv/bin; cp "$STAND_INS/venv-python" .venv/bin/python
        echo "executable = $0" >.venv/pyvenv.cfg ;;
esac"""
