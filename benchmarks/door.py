"""Time and peak memory of import-hf and export-hf on a model of Mistral-7B's shape, beside a plain copy of its files;
every bit must come back.

    python -m benchmarks.door [--layers 32] [--folder DIR]

The weights are random, bf16, and written layer by layer with the safetensors library. Both commands run as a user runs
them; their peak is what the kernel reports of the finished process, mapped pages of files included. The copy is
shutil.copyfile and fsync of every file, as both commands fsync theirs, before and after them. DIR needs room for three
times the model: source, checkpoint, export.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from benchmarks.common import write_result

MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_BF16_ONE = 0x3F80
"""Bits of 1.0; those below are the numbers of [0, 1)."""


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, checkpoint, exported = (Path(name) / part for part in ("source", "checkpoint", "exported"))
        num_bytes = write_model(source, args.layers)
        measured: dict[str, Any] = {"layers": args.layers, "weight_bytes": num_bytes}
        copies = [copy(source, Path(name) / "copy")]
        measured["import-hf"] = run("import-hf", "--hf", source, "--output", checkpoint, "--no-verify")
        measured["export-hf"] = run("export-hf", "--checkpoint", checkpoint, "--output", exported, "--no-verify")
        copies.append(copy(source, Path(name) / "copy"))
        measured["copy"] = {"seconds": copies}
        before, after = hashes(source), hashes(exported)
    measured["num_tensors"] = len(before)
    measured["bit_exact"] = before == after
    for verb in ("import-hf", "export-hf"):
        seconds, peak = measured[verb]["seconds"], measured[verb]["peak_rss_bytes"]
        print(
            f"{verb}: {num_bytes / 1e9:.2f} GB in {seconds:.1f} s, {num_bytes / seconds / 1e6:.0f} MB/s, "
            f"peak {peak / 2**30:.2f} GiB; {min(copies) / seconds:.2f} of a copy's"
        )
    print(f"{len(before)} tensors, bit exact: {before == after}")
    write_result("door", measured)


def write_model(folder: Path, num_layers: int, shape: Mapping[str, Any] = MISTRAL_7B) -> int:
    """A folder with one file a layer; returns the bytes of its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**shape, "num_hidden_layers": num_layers}))
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number, tensors in enumerate(
        tqdm(parts(num_layers, shape), total=num_layers + 1, desc="random model", unit="file")
    ):
        filename = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, filename)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return num_bytes


def parts(num_layers: int, shape: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """What stands outside the layers, then each layer."""
    hidden, ffn, vocab = (shape[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, keys = (shape[name] * shape["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    outside = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden), "model.norm": (hidden,)}
    inside = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    generator = torch.Generator().manual_seed(0)
    for prefix, shapes in [("", outside), *((f"model.layers.{layer}.", inside) for layer in range(num_layers))]:
        yield {
            f"{prefix}{name}.weight": torch.randint(_BF16_ONE, size, dtype=torch.int16, generator=generator).view(
                torch.bfloat16
            )
            for name, size in shapes.items()
        }


def run(*command: str | Path) -> dict[str, float]:
    """Run a verb; seconds of wall clock and peak resident bytes."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "megatron_longpo.commands.main", *map(str, command)]
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command[0]} failed with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": time.monotonic() - start, "peak_rss_bytes": usage.ru_maxrss * 1024}


def copy(source: Path, target: Path) -> float:
    """Seconds of a durable copy, which is removed again."""
    began = time.monotonic()
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file)
    seconds = time.monotonic() - began
    shutil.rmtree(target)
    return seconds


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of dtype, shape and bytes of every tensor, by its name."""
    found: dict[str, str] = {}
    for path in tqdm(sorted(folder.glob("*.safetensors")), desc=f"hash {folder.name}", unit="file"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                tensor = file.get_tensor(name)
                digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.view(torch.uint8).numpy().data)
                found[name] = digest.hexdigest()
    return found


if __name__ == "__main__":
    main()
