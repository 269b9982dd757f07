"""``--help`` of every verb and program: it prints and exits, whatever else is missing, and changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longpo.commands.main import VERBS, main

ROOT = Path(__file__).resolve().parents[1]

# One process for all: every one of them would import torch. A module that asks for a GPU or a file at import fails.
RUN_ALL = """
import contextlib, io, runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = "no exit"
        except SystemExit as exit:
            status = exit.code
    print(module, status, len(printed.getvalue().splitlines()), printed.getvalue().startswith("usage: "))
"""

NOT_RUN_BY_HAND = {
    "benchmarks.gpu.one",
    "benchmarks.peers.released_form",
    "benchmarks.peers.trl_dpo",
    "benchmarks.stage_rank",
    "tests.device_calls",
    "tests.unit.evaluate.answer_server",
    "tests.unit.generate.run_by_rule",
    "tests.unit.generate.rule_server",
    "tests.unit.plan.count_flops",
}
"""Other processes of a test or a benchmark."""


def programs() -> list[str]:
    """Every module that is run by ``python -m``; tools/ are the verbs under another name (tests/unit/tools)."""
    found: list[str] = []
    for folder in ("megatron_longpo", "benchmarks", "examples", "scripts", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tests = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
            if any(ast.unparse(test) == "__name__ == '__main__'" for test in tests):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [name for name in found if name not in NOT_RUN_BY_HAND]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    printed = capsys.readouterr().out
    assert exit.value.code == 0 and printed.startswith(f"usage: megatron-longpo {verb} ") and VERBS[verb] in printed


def test_programs() -> None:
    # One test process may be on its way to write what a program would: compare what git sees.
    before = status()
    names = programs()
    assert {"megatron_longpo.train", "benchmarks.sft", "tests.mutations", "scripts.draw_pair"} <= set(names)
    command = [sys.executable, "-c", RUN_ALL, *names]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.split() for line in finished.stdout.splitlines()]
    assert [line[0] for line in lines] == names, finished.stderr
    for name, code, num_lines, is_usage in lines:
        assert (code, is_usage) == ("0", "True") and int(num_lines) > 3, name
    assert status() == before


def status() -> str:
    """What is changed in the working tree."""
    return subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
