"""Every call of Megatron and of lm-eval's vLLM model in the package, by the installed sources: the arguments exist.

That covers what only runs on CUDA, too. What a swapped argument would mean is compared where the call is made
(the other tests here) or run (all other tests).
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from inspect import Signature
from pathlib import Path

import pytest

from tests.mutations import ROOT, Mutation
from tests.signatures.mutated import mutations, text
from tests.signatures.recorded import signature_of_record
from tests.signatures.sources import Absent, record

FILES = sorted(path for path in (ROOT / "megatron_longpo").rglob("*.py"))
LIBRARIES = ("megatron", "lm_eval")
HANDS_ON = {
    "megatron.core.models.gpt.gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec": (
        "megatron.core.models.gpt.gpt_layer_specs.get_gpt_layer_with_transformer_engine_submodules"
    )
}
"""Functions of ``*args, **kwargs``, and what they give them to."""
MUTATIONS = mutations(
    "megatron_longpo/model/build.py",
    ("layer-norm-switch-renamed", "engine_spec(qk_layernorm=", "engine_spec(qk_norm="),
    ("model-stage-renamed", "vp_stage=vp_stage,\n    )\n    model", "stage=vp_stage,\n    )\n    model"),
    ("config-heads-renamed", "num_query_groups=options", "num_key_value_heads=options"),
)


@cache
def read(path: str) -> str | None:
    """A file of the installed packages."""
    package = path.partition("/")[0]
    spec = find_spec(package) if package in LIBRARIES else None
    if spec is None or spec.submodule_search_locations is None:
        return None
    for folder in spec.submodule_search_locations:
        file = Path(folder).parent / path
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


@cache
def signature(dotted: str) -> Signature | None:
    """Of a function, of the making of a class, or of a method; None of what is no part of a class's source.

    Raises:
        Absent: there is nothing of this name.
    """
    dotted = HANDS_ON.get(dotted, dotted)
    owner, _, name = dotted.rpartition(".")
    try:
        found = record(read, dotted)
    except Absent:
        return signature_of_record(record(read, owner, (name,)), name)
    if "attributes" not in found:
        return signature_of_record(found) if "signature" in found else None
    try:
        return signature_of_record(record(read, dotted, ("__init__",)))
    except Absent:
        return signature_of_record(found) if "fields" in found else None


def outside_calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """(full name of what is called, the call) of the libraries, by the imports of the file."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            imported |= {one.asname: one.name for one in node.names if one.asname and one.name.startswith(LIBRARIES)}
        match node:  # models = import_optional("lm_eval.models.vllm_causallms", ...)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(args=[ast.Constant(value=str(module)), *_])):
                imported |= {name: module} if module.startswith(LIBRARIES) else {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            if first in imported and rest.replace(".", "").isidentifier() >= bool(dot):
                yield imported[first] + dot + rest, node


def compare(source: str) -> int:
    """The number of calls that were bound; TypeError or Absent where one cannot be."""
    count = 0
    for dotted, call in outside_calls(source):
        theirs = signature(dotted)
        if theirs is None:
            continue
        owner = [None] * (next(iter(theirs.parameters), "") in ("self", "cls"))
        positional = [ast.unparse(one) for one in call.args if not isinstance(one, ast.Starred)]
        named = {one.arg: ast.unparse(one.value) for one in call.keywords if one.arg}
        is_whole = len(positional) == len(call.args) and len(named) == len(call.keywords)
        try:
            (theirs.bind if is_whole else theirs.bind_partial)(*owner, *positional, **named)
        except TypeError as error:
            raise TypeError(f"{dotted}, line {call.lineno}: {error}") from error
        count += 1
    return count


def test_every_call_gives_arguments_that_exist() -> None:
    counts = {path.relative_to(ROOT).as_posix(): compare(path.read_text(encoding="utf-8")) for path in FILES}
    assert sum(counts.values()) > 60
    assert counts["megatron_longpo/model/build.py"] >= 6 and counts["megatron_longpo/evaluate/short/engines.py"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_renamed_argument_is_noticed(mutation: Mutation) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        compare(text(mutation))


def test_every_use_of_a_kernel_or_an_engine_is_compared() -> None:
    """By name: a new one needs a comparison of its own in this folder."""
    operations, modules = set[str](), set[str]()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Attribute(attr="aten"), attr=name):
                    operations.add(name)
                case ast.Call(func=ast.Name(id="_vllm" | "import_optional"), args=[ast.Constant(value=str(name)), *_]):
                    modules.add(name)
                case ast.ImportFrom(module=str(name)) if "transformer_engine" in name and "longpo" not in name:
                    modules.add(name)
    cpu = {f"_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")}
    flash = {"_flash_attention_forward", "_flash_attention_backward"}
    cudnn = {f"_scaled_dot_product_cudnn_attention{end}" for end in ("", "_backward")}
    assert operations == cpu | flash | cudnn | {"addmm"}
    engines = {one for one in modules if one.partition(".")[0] in ("vllm", "megatron", "transformer_engine")}
    assert engines == {
        "vllm",
        "vllm.engine.arg_utils",
        "vllm.v1.engine.async_llm",
        "vllm.sampling_params",
        "megatron.core.extensions.transformer_engine",
    }
