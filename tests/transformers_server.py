"""``transformers serve``, a real OpenAI-compatible server, as a process on loopback."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVE = "from transformers.cli.transformers import main; main()"


@contextmanager
def served(folder: Path, port: int, log: Path | None = None) -> Iterator[str]:
    """The server's endpoint; it may need a while to listen, and is killed in the end.

    Args:
        log: gets what it prints; None: a file beside the model's folder.
    """
    command = [sys.executable, "-W", "ignore", "-c", SERVE, "serve", str(folder), "--port", str(port)]
    options = ["--host", "127.0.0.1", "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (log or folder.with_suffix(".log")).open("a", encoding="utf-8") as lines:
        server = subprocess.Popen([*command, *options], env=environment, stdout=lines, stderr=lines)
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
