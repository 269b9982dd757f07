"""docs/one-pair.md names its functions in the order in which a real pair first meets them."""

import json
import sys
from pathlib import Path
from types import CodeType

import megatron_longpo
from megatron_longpo.commands.main import main as run_verb
from tests.ranks import launch
from tests.test_one_pair import sections
from tests.workspace import make_workspace, train_argv, train_main

PACKAGE = Path(megatron_longpo.__file__).parent
TOOL = sys.monitoring.PROFILER_ID


def record_calls(first: str) -> list[str]:
    """A list that fills with the package's functions, each when it is called first, from the call of ``first`` on."""
    called: list[str] = []

    def started(code: CodeType, offset: int) -> object:
        path = Path(code.co_filename)
        if not path.is_relative_to(PACKAGE):
            return sys.monitoring.DISABLE
        name = ".".join((*path.relative_to(PACKAGE).with_suffix("").parts, code.co_qualname))
        if called or name == first:
            called.append(name)
            return sys.monitoring.DISABLE
        return None

    sys.monitoring.use_tool_id(TOOL, "one pair")
    sys.monitoring.register_callback(TOOL, sys.monitoring.events.PY_START, started)
    sys.monitoring.set_events(TOOL, sys.monitoring.events.PY_START)
    return called


def recorded_build() -> int:
    """Build, with the functions called printed as the last line."""
    called = record_calls(sections()[0][0])
    status = run_verb()
    print(json.dumps(called))
    return status


def recorded_training() -> int:
    """Train, with the functions called printed as the last line."""
    called = record_calls(sections()[1][0])
    status = train_main()
    print(json.dumps(called))
    return status


def test_a_pair_meets_the_functions_in_the_order_of_the_page(tmp_path: Path) -> None:
    work = make_workspace(tmp_path, num_pairs=1)
    on_page = sections()
    again = ["--input", work.pairs, "--tokenizer", work.hf, "--output", tmp_path / "again", "--max-length", "512"]
    build = launch(recorded_build, ["build", *map(str, again)], 1)
    training = launch(recorded_training, [*train_argv(work), "--global-batch-size", "1", "--train-iters", "1"], 1)
    for finished, names in ((build, on_page[0]), (training, [name for part in on_page[1:] for name in part])):
        assert finished.status == 0, finished.output
        called = json.loads(next(line for line in reversed(finished.output.splitlines()) if line.startswith('["')))
        assert [name for name in called if name in names] == names
