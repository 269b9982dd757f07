"""``tools/<verb>.py`` from any folder, with the package not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longpo.commands.main import VERBS

TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.mark.parametrize("verb", VERBS)
def test_tool_is_its_verb(verb: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(TOOLS / f"{verb.replace('-', '_')}.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: megatron-longpo {verb} ")
