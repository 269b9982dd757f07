"""Who may import whom (data < model < objective < reference < train), read from the sources.

The rules stand in ``MAY_IMPORT`` and ``violations``; the second half of the file shows each rule failing on a source
that breaks it, so that the test cannot pass by reading nothing.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "megatron_longpo"

# Top-level files and folders of the package. Every one may import itself and EVERYBODYS.
EVERYBODYS = {"errors", "files", "journal", "locks", "quiet", "strict_json", "templates", "workers"}
TRAINING = {
    "train",
    "console",
    "step",
    "arguments",
    "metrics_writer",
    "metrics_sinks",
    "step_clock",
    "step_metrics",
    "throughput",
    "watch",
    "batches",
    "optimizer",
    "run_errors",
    "non_finite",
}  # one layer
LAYERS = {"data", "model", "objective", "step_settings", "micro_batch", "reference", "hf", "platform", "megatron_hooks"}
LAYERS |= {"metrics", "metrics_file", "peak_memory", "plan", "started_ranks"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "journal": set(),
    "locks": set(),
    "quiet": set(),
    "templates": set(),
    "workers": set(),
    "megatron_hooks": set(),
    "platform": {"megatron_hooks"},
    "peak_memory": {"platform"},
    "started_ranks": {"platform"},
    "strict_json": set(),
    "data": set(),
    "generate": {"data"},
    "model": {"data", "platform"},
    "objective": {"data", "model"},
    "step_settings": {"data", "model", "objective"},
    "micro_batch": {"data", "model", "step_settings"},
    "hf": {"data", "model", "platform"},
    "plan": {"data", "model", "objective", "hf"},
    "reference": {"data", "model", "objective", "micro_batch", "hf", "platform", "started_ranks"},
    **dict.fromkeys(TRAINING, LAYERS | TRAINING),
    "metrics": set(),
    "metrics_file": {"metrics"},
    "evaluate": {"data", "generate"},
    "report": {"metrics", "metrics_file", "hf", "evaluate"},
    # launch asks the verbs' parsers and checks; of the verbs commands/launch.py alone knows it.
    "launch": LAYERS | TRAINING | {"evaluate", "generate", "commands"},
    "commands": LAYERS | TRAINING | {"evaluate", "generate", "launch", "report"},
}

READERS_OF_GLOBALS = {"train", "arguments", "platform", "megatron_hooks"}
GLOBALS = ("megatron.training.global_vars", "megatron.training.get_args")


def imported_names(source: str) -> set[str]:
    """Every dotted name that ``source`` imports at any depth, and every ``torch.distributed`` it uses."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            names.add("torch.distributed")
    return names


def unit_of(module: str) -> str:
    """``megatron_longpo.data.pair`` -> ``data``; the package's own name -> ''."""
    return ".".join(module.split(".")[1:2])


def is_in(name: str, *prefixes: str) -> bool:
    """``name`` is one of the modules ``prefixes`` or lies in one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def violations(module: str, source: str) -> list[str]:
    """What ``source``, as the module of that dotted name, imports against the rules."""
    unit = unit_of(module)
    found = [f"{unit} is not in the table MAY_IMPORT"] if unit and unit not in MAY_IMPORT else []
    for name in sorted(imported_names(source)):
        if is_in(name, PACKAGE):
            # `from megatron_longpo import __version__` names no unit.
            target = unit_of(name) if unit_of(name) in MAY_IMPORT else ""
            allowed = not target or target in MAY_IMPORT.get(unit, set()) | EVERYBODYS | {unit}
        elif is_in(name, "megatron"):
            allowed = may_import_megatron(unit, name)
        elif is_in(name, "torch.distributed"):
            allowed = unit != "data"
        else:
            allowed = not is_in(name, "tools", "scripts", "tests", "examples", "benchmarks") and name[0] != "."
        if not allowed:
            found.append(f"{module} imports {name}")
    return found


def may_import_megatron(unit: str, name: str) -> bool:
    """Megatron is for the model and what drives it; its global arguments are for the training program alone."""
    if is_in(name, *GLOBALS):
        return unit in READERS_OF_GLOBALS
    if unit == "data":
        return is_in(name, "megatron.core.datasets")
    return unit not in ("objective", "generate", "evaluate", *EVERYBODYS)


def modules() -> dict[str, str]:
    """Dotted name -> source of every module of the package."""
    found = dict[str, str]()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of ``sources`` each imports: the longest known module that an imported name starts with."""
    graph = dict[str, set[str]]()
    for module, source in sources.items():
        graph[module] = set()
        for name in imported_names(source):
            while name and name not in sources:
                name = name.rpartition(".")[0]
            graph[module] |= {name} - {"", module}
    return graph


def test_every_module_obeys_the_rules() -> None:
    sources = modules()
    assert {unit_of(module) for module in sources} >= {"data", "model", "objective", "reference", "hf", "commands"}
    assert [line for module, source in sources.items() for line in violations(module, source)] == []


def test_no_import_cycle() -> None:
    graphlib.TopologicalSorter(import_graph(modules())).prepare()


def test_a_cycle_would_be_found() -> None:
    sources = {"megatron_longpo.a": "from megatron_longpo.b import f", "megatron_longpo.b": "import megatron_longpo.a"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(sources)).prepare()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("megatron_longpo.data.pair", "from megatron_longpo.model.layout import PairLayout"),
        ("megatron_longpo.data.pair", "from megatron_longpo import platform"),
        ("megatron_longpo.data.pair", "import torch.distributed as dist"),
        ("megatron_longpo.data.pair", "from torch import distributed"),
        ("megatron_longpo.data.pair", "import torch\ntorch.distributed.barrier()"),
        ("megatron_longpo.data.dataset", "from megatron.core import parallel_state"),
        ("megatron_longpo.model.rope", "from megatron_longpo.objective import longpo"),
        ("megatron_longpo.model.build", "from megatron.training import get_args"),
        ("megatron_longpo.model.build", "from megatron.training.global_vars import get_tokenizer"),
        ("megatron_longpo.model.build", "def f():\n    import megatron_longpo.reference.cache"),
        ("megatron_longpo.objective.longpo", "from megatron.core.transformer import TransformerConfig"),
        ("megatron_longpo.objective.longpo", "from megatron_longpo.hf import config"),
        ("megatron_longpo.reference.score", "from megatron_longpo.train import main"),
        ("megatron_longpo.reference.score", "from megatron.training import get_args"),
        ("megatron_longpo.hf.config", "from megatron_longpo.reference import cache"),
        ("megatron_longpo.train", "from megatron_longpo.commands import main"),
        ("megatron_longpo.train", "from tools import build"),
        ("megatron_longpo.train", "from tests.ranks import run_ranks"),
        ("megatron_longpo.evaluate.long.ruler", "import megatron.core"),
        ("megatron_longpo.generate.engine", "import megatron.core"),
        ("megatron_longpo.generate.engine", "from megatron_longpo.hf import config"),
        ("megatron_longpo.commands.build", "from .main import run_verb"),
        ("megatron_longpo.novelty", "import json"),
    ],
)
def test_a_violation_would_be_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("megatron_longpo.data.indexed", "from megatron.core.datasets.indexed_dataset import IndexedDataset"),
        ("megatron_longpo.model.build", "from megatron_longpo import platform"),
        ("megatron_longpo.arguments.parse", "from megatron.training.global_vars import get_args"),
        ("megatron_longpo.commands.main", "from megatron_longpo import __version__"),
        ("megatron_longpo.train", "from megatron_longpo.errors import UserError"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []
