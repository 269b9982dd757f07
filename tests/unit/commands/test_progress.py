"""commands/progress.py: a bar on a terminal, a line now and then in a log."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longpo.commands import progress
from megatron_longpo.commands.progress import InputProgress

ROOT = Path(__file__).resolve().parents[3]


def test_a_log_hears_of_it_only_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with InputProgress("build", 200) as shown:
        for _ in range(10):
            shown.advance(10, 1000)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "_SECONDS_PER_LINE", -1.0)
        shown.advance(50, 500)
    line = capsys.readouterr().err
    assert line.startswith("build: 75%, 11 pairs, ")
    assert line.endswith(" tokens/s\n")


def test_a_terminal_gets_a_bar() -> None:
    program = (
        "from megatron_longpo.commands.progress import InputProgress\n"
        "with InputProgress('build', 2_000_000) as shown:\n"
        "    shown.advance(1_000_000, 1234)\n"
        "    shown.advance(1_000_000, 1234)\n"
    )
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=terminal, env=environment, check=True)
    os.close(terminal)
    shown = os.read(controller, 100_000).decode()
    os.close(controller)
    assert "build" in shown
    assert "2.0/2.0 MB" in shown
    assert "2 pairs, " in shown
