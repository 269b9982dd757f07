"""Running ``megatron-longpo build`` in this process."""

from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands.main import main


def build(input_file: Path, tokenizer: Path, output: Path, **options: Any) -> int:
    """Run the verb in this process; an option set to True is a flag."""
    arguments = {"input": input_file, "tokenizer": tokenizer, "output": output, "max-length": 4000, "workers": 1}
    argv = ["build"]
    for name, value in (arguments | {name.replace("_", "-"): value for name, value in options.items()}).items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return main(argv)


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("megatron-longpo build: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("megatron-longpo build: error: ").rstrip()
