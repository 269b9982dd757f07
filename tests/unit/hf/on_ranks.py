"""What the tests of the door run on gloo ranks: stock GPTModels that load and save checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.sidecar import read_hf_config


@dataclass(frozen=True, slots=True)
class Job:
    """One checkpoint folder to load into a stock GPTModel."""

    checkpoint: str
    vocab_multiple: int
    """Megatron's --make-vocab-size-divisible-by."""
    iteration: str = "release"
    """Subfolder of the checkpoint to load."""
    save_as: str = ""
    """Folder to save the loaded model in, beside an optimizer tensor full of NaN; '' for not at all."""
    rotary_base: float | None = None
    """Instead of the configuration's."""
    rotary_interleaved: bool = False
    """Pairs of neighbouring dimensions are turned, instead of halves."""


def logits(jobs: list[Job], tokens: list[int], tp: int, pp: int) -> list[Tensor | None]:
    """Load each job's checkpoint at (tp, pp) and run it; logits ``[S, vocab]`` on the last stage, else None."""
    parallel_state.initialize_model_parallel(tp, pp)
    model_parallel_cuda_manual_seed(1)
    return [_run(job, torch.tensor([tokens])) for job in jobs]


def _run(job: Job, tokens_1S: Tensor) -> Tensor | None:
    options = megatron_options(read_hf_config(Path(job.checkpoint)))
    model = _stock_model(options, job)
    sharded = model.sharded_state_dict()
    loaded = dist_checkpointing.load({"model": sharded}, str(Path(job.checkpoint, job.iteration)))
    assert loaded["checkpoint_version"] == 3.0
    model.load_state_dict(loaded["model"], strict=True)
    if job.save_as:
        _save(model, Path(job.save_as))
    return _forward(model.eval(), tokens_1S, int(options["vocab_size"]))


def _stock_model(options: dict[str, Any], job: Job) -> GPTModel:
    tp, pp = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )
    same_names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
    same_names += (
        "kv_channels",
        "normalization",
        "layernorm_epsilon",
        "add_bias_linear",
        "add_qkv_bias",
        "qk_layernorm",
    )
    config = TransformerConfig(
        **{name: options[name] for name in same_names},
        gated_linear_unit=options["swiglu"],
        activation_func=torch.nn.functional.silu,
        attention_dropout=options["attention_dropout"],
        hidden_dropout=options["hidden_dropout"],
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        attention_softmax_in_fp32=True,
        rotary_interleaved=job.rotary_interleaved,
    )
    multiple = job.vocab_multiple * tp
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm"),
        vocab_size=-(-options["vocab_size"] // multiple) * multiple,
        max_sequence_length=options["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
        share_embeddings_and_output_weights=not options["untie_embeddings_and_output_weights"],
        position_embedding_type=options["position_embedding_type"],
        rotary_percent=options["rotary_percent"],
        rotary_base=job.rotary_base or options["rotary_base"],
    )


def _save(model: GPTModel, folder: Path) -> None:
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    nan = torch.full((32,), torch.nan)
    # Every rank holds the same tensor; only rank 0's copy is the one to write.
    optimizer = ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.x.weight", nan, replica_id=dist.get_rank())
    state = {"model": model.sharded_state_dict(), "optimizer": optimizer, "checkpoint_version": 3.0}
    dist_checkpointing.save(state, str(folder))


@torch.no_grad()
def _forward(model: GPTModel, tokens_1S: Tensor, vocab_size: int) -> Tensor | None:
    length = tokens_1S.shape[1]
    hidden = torch.empty(length, 1, model.config.hidden_size)
    if not model.pre_process:
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    position_ids_1S = torch.arange(length)[None]
    hidden_from_later = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    output = model(tokens_1S, position_ids_1S, hidden_from_later)
    if not model.post_process:
        dist.send(output.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
        return None
    return output[0, :, :vocab_size]
