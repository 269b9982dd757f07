"""Records what released wheels say of the names that CUDA paths use: ``python -m tests.signatures.extract WHEEL...``.

The wheels are read as data (sources.py); get them with ``pip download --no-deps PACKAGE==VERSION``. Each becomes
``PACKAGE-VERSION.json`` in this folder.
"""

import argparse
import hashlib
import json
import zipfile
from pathlib import Path

from tests.signatures.sources import Record, record

HERE = Path(__file__).resolve().parent
ENGINE = "transformer_engine.pytorch"
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "transformer_engine": {
        f"{ENGINE}.DotProductAttention": ("__init__", "forward", "set_context_parallel_group"),
        f"{ENGINE}.Linear": ("__init__", "forward"),
        f"{ENGINE}.LayerNormLinear": ("__init__", "forward"),
        f"{ENGINE}.LayerNorm": ("__init__", "forward"),
        f"{ENGINE}.RMSNorm": ("__init__", "forward"),
        f"{ENGINE}.GroupedLinear": ("__init__", "forward"),
        f"{ENGINE}.attention.rope.apply_rotary_pos_emb": (),
        f"{ENGINE}.fp8.FP8GlobalStateManager": (),
        f"{ENGINE}.fp8.fp8_autocast": (),
        f"{ENGINE}.fp8.fp8_model_init": (),
        f"{ENGINE}.distributed.CudaRNGStatesTracker": ("__init__",),
        f"{ENGINE}.distributed.activation_recompute_forward": (),
        f"{ENGINE}.distributed.checkpoint": (),
        f"{ENGINE}.optimizers.FusedAdam": ("__init__",),
        f"{ENGINE}.optimizers.FusedSGD": ("__init__",),
        f"{ENGINE}.optimizers.multi_tensor_applier": (),
        f"{ENGINE}.module.base.get_dummy_wgrad": (),
        f"{ENGINE}.fp8_model_init": (),
        f"{ENGINE}.fp8_autocast": (),
        f"{ENGINE}.tensor.QuantizedTensor": (),
        f"{ENGINE}.router.fused_topk_with_score_function": (),
        f"{ENGINE}.router.fused_compute_score_for_moe_aux_loss": (),
        f"{ENGINE}.router.fused_moe_aux_loss": (),
        "transformer_engine.common.recipe.DelayedScaling": (),
        "transformer_engine.common.recipe.Float8CurrentScaling": (),
        "transformer_engine.common.recipe.Float8BlockScaling": (),
        "transformer_engine.common.recipe.MXFP8BlockScaling": (),
        "transformer_engine.common.recipe.Format": (),
    },
    "vllm": {
        "vllm.engine.arg_utils.AsyncEngineArgs": (),
        "vllm.config.ModelConfig": (),
        "vllm.v1.engine.async_llm.AsyncLLM": ("from_engine_args", "generate", "shutdown"),
        "vllm.sampling_params.SamplingParams": (),
        "vllm.sampling_params.RequestOutputKind": (),
        "vllm.inputs.TokensPrompt": (),
        "vllm.outputs.RequestOutput": ("__init__",),
        "vllm.outputs.CompletionOutput": (),
        "vllm.v1.engine.FINISH_REASON_STRINGS": (),
        # Of lm-eval's class, which the short tasks use.
        "vllm.LLM": ("__init__", "generate"),
        "vllm.SamplingParams": (),
        "vllm.TokensPrompt": (),
        "vllm.engine.arg_utils.EngineArgs": (),
        "vllm.logprobs.Logprob": (),
        "vllm.lora.request.LoRARequest": (),
        "vllm.renderers.hf.resolve_chat_template": (),
        "vllm.tokenizers.get_tokenizer": (),
        "vllm.v1.engine.llm_engine.LLMEngine": ("__init__",),
    },
}


def extract(wheel: Path) -> dict[str, Record]:
    """All records of a wheel, below what says which it is."""
    package, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())

        def read(path: str) -> str | None:
            return archive.read(path).decode() if path in files else None

        names = {name: record(read, name, methods) for name, methods in NAMES[package].items()}
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"archive": {"name": wheel.name, "version": version, "sha256": digest}, "names": names}


def main() -> None:
    """Write the records of the wheels of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+", metavar="WHEEL")
    for wheel in parser.parse_args().wheels:
        found = extract(wheel)
        path = HERE / f"{wheel.name.split('-')[0]}-{found['archive']['version']}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(found['names'])} names, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
