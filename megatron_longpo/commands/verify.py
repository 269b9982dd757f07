"""``--verify`` of import-hf and export-hf: Megatron's logits against those of transformers, on the same tokens.

Both run in fp32, with weights rounded alike; transformers with its plainest attention ("eager"). Each prompt runs
through Megatron as a pair, as in training: its first half is the trunk, its second half one branch, the second half
with the tokens in reverse order the other.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_longpo import platform

platform.activate(announce=False)  # before Megatron is imported

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from megatron_longpo.data.tokenizer import load_tokenizer  # noqa: E402
from megatron_longpo.errors import UserError, one_line  # noqa: E402
from megatron_longpo.hf.config import architecture  # noqa: E402
from megatron_longpo.hf.folder import checkpoint_folder  # noqa: E402
from megatron_longpo.hf.rope import rope_parameters  # noqa: E402
from megatron_longpo.hf.sidecar import read_hf_config, read_identity  # noqa: E402
from megatron_longpo.hf.weights import DTYPES  # noqa: E402
from megatron_longpo.model.attention import tree_params  # noqa: E402
from megatron_longpo.model.forward import pack, tree_input  # noqa: E402
from megatron_longpo.reference.frozen import load_model  # noqa: E402
from megatron_longpo.strict_json import read_json_object  # noqa: E402

LARGEST_BY_DEFAULT = 1_000_000_000
"""Parameters; two fp32 copies of the model are in memory."""
TOLERANCE = 1e-4
"""Share of the largest logit. Right conversions of 30 layers are within 1e-5, a wrong rotary base is above 1e-2."""
_NUM_RANDOM, _RANDOM_LENGTH = 3, 64
_LEAST_TOKENS = 4  # trunk and both branches of at least two


def verify_if_asked(args: argparse.Namespace, hf: Path, checkpoint: Path, iteration: int | None = None) -> None:
    """Verify, unless the options say not to, or leave it open and the model is large; prints what was found.

    Args:
        args: the options of import_hf.add_verify_options, and ``dtype``.
        hf: Hugging Face folder.
        checkpoint: Megatron checkpoint folder, complete but perhaps not at its final place yet.
        iteration: of the checkpoint; None for the latest.

    Raises:
        UserError: the logits differ, or a prompt cannot be used.
    """
    size = read_identity(checkpoint).num_parameters
    if args.verify is False:
        return
    if args.verify is None and args.verify_prompts is None and size >= LARGEST_BY_DEFAULT:
        print(f"not verified: {size:,} parameters; --verify compares the logits with transformers' all the same")
        return
    prompts = _random_prompts(hf) if args.verify_prompts is None else _read_prompts(args.verify_prompts, hf)
    dtype = DTYPES.get(args.dtype)
    with _one_rank(), torch.no_grad():
        found = _megatron_logits(checkpoint, iteration, prompts, dtype)
        expected = _hf_logits(hf, prompts, dtype)
    differences = [(one - other).abs().max().item() for one, other in zip(found, expected, strict=True)]
    largest = max(logits.abs().max().item() for logits in expected)
    summary = (
        f"logits of {len(prompts)} prompts ({sum(map(len, prompts))} tokens) differ by at most "
        f"{max(differences):.1e} from transformers', the largest is {largest:.1f}"
    )
    if not max(differences) <= TOLERANCE * largest:  # also where one is NaN
        raise UserError(f"{summary}: this model is converted wrongly; nothing was written (--no-verify writes it)")
    print(f"verified: {summary}")


def _random_prompts(hf: Path) -> list[Tensor]:
    """Token ids [num_tokens] of prompts that are the same every time."""
    vocab_size = architecture(read_json_object(hf / "config.json")).vocab_size
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (_RANDOM_LENGTH,), generator=generator) for _ in range(_NUM_RANDOM)]


def _read_prompts(file: Path, hf: Path) -> list[Tensor]:
    """Token ids [num_tokens] of each line with text."""
    tokenizer: Any = load_tokenizer(hf)
    prompts: list[Tensor] = []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--verify-prompts {file}: cannot be read ({error}); give a text file in UTF-8") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        prompts.append(torch.tensor(tokenizer(line)["input_ids"], dtype=torch.int64))
        if len(prompts[-1]) < _LEAST_TOKENS:
            raise UserError(f"{file}:{number}: {len(prompts[-1])} tokens; a prompt needs at least {_LEAST_TOKENS}")
    if not prompts:
        raise UserError(f"--verify-prompts {file}: no line with text; give one prompt a line")
    return prompts


def _pair(prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Trunk and two branches, which open with the same token."""
    trunk, branch = prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :]
    return trunk, branch, torch.cat((branch[:1], branch[1:].flip(0)))


@contextmanager
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo" if platform.is_cpu() else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _megatron_logits(
    checkpoint: Path, iteration: int | None, prompts: list[Tensor], dtype: torch.dtype | None
) -> list[Tensor]:
    """[trunk + both branches, vocabulary] of each prompt."""
    model = load_model(
        checkpoint,
        checkpoint_folder(checkpoint, iteration),
        rope_parameters(read_hf_config(checkpoint)),
        dtype=torch.float32,
    )
    _round(model, dtype)
    return [_pair_logits(model, prompt) for prompt in prompts]


def _pair_logits(model: nn.Module, prompt: Tensor) -> Tensor:
    trunk, chosen, rejected = _pair(prompt)
    spans_K2 = torch.tensor([[1, len(chosen)]])
    conversation = {"trunk": trunk, "chosen": chosen, "rejected": rejected}
    conversation |= {"chosen_spans": spans_K2, "rejected_spans": spans_K2}
    batch = pack([tree_input(conversation, ("chosen", "rejected"), nll_tokens=None)])
    batch = batch.to(torch.cuda.current_device())
    logits = model(
        input_ids=batch.tokens_L.unsqueeze(0),
        position_ids=batch.positions_L.unsqueeze(0),
        attention_mask=None,
        packed_seq_params=tree_params(batch.layout, batch.positions_L),
    )
    return logits[0]


def _round(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Round the weights as ``--dtype`` does, and nothing else: Module.to would round the rotary frequencies too."""
    if dtype is not None:
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))


def _hf_logits(hf: Path, prompts: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """As `_megatron_logits`.

    Raises:
        UserError: transformers cannot load the folder, or not run it.
    """
    try:
        return _transformers_logits(hf, prompts, dtype)
    except Exception as error:  # whatever a model makes of a wrong configuration
        raise UserError(
            f"transformers cannot run this model ({one_line(error)}); nothing was written (--no-verify writes it)"
        ) from error


def _transformers_logits(hf: Path, prompts: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loader: Any = AutoModelForCausalLM
    model: Any = loader.from_pretrained(
        hf, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    model = model.to(torch.cuda.current_device()).eval()
    _round(model, dtype)
    found: list[Tensor] = []
    for prompt in prompts:
        trunk, *branches = _pair(prompt.to(model.device))
        chosen, rejected = (model(torch.cat((trunk, branch))[None]).logits[0] for branch in branches)
        found.append(torch.cat((chosen, rejected[len(trunk) :])))
    return found
