"""The system under test: Megatron's DDP, schedules and optimizer around our step, on gloo ranks.

The gradient is read off the optimizer: one step from known weights. So what is compared is what an optimizer really
gets, after every reduction, with or without the distributed optimizer, which accepts Adam only. With both betas 0 and
an epsilon beyond every gradient, Adam's step lr * g / (|g| + epsilon) is plain gradient descent: |g| + epsilon rounds
to epsilon, and lr and epsilon are powers of two, so the step is exactly STEP * g.
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longpo.hf.config import architecture, megatron_options
from megatron_longpo.hf.names import name_table
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.torch_dist import CheckpointReader
from megatron_longpo.micro_batch import MicroBatch, micro_batch
from megatron_longpo.model.build import ModelShape, build_model, transformer_config
from megatron_longpo.objective.objectives import OBJECTIVES
from megatron_longpo.reference.frozen import load_frozen
from megatron_longpo.reference.online import OnlineReference
from megatron_longpo.step import forward_step
from megatron_longpo.step_metrics import take_breakdowns
from megatron_longpo.step_settings import StepSettings
from megatron_longpo.strict_json import read_json_object
from tests.parity.cases import Case, coefficients, random_pairs
from tests.parity.oracle import Result

EPSILON = 2.0**40
STEP = 2.0**20
"""So large that the weight after the step is the gradient, times this, to fp32 rounding."""


def run_cases(cases: list[Case], folder: Path) -> list[dict[str, float]]:
    """On every rank: run the cases one after the other, regrouping the same ranks for each.

    Reads ``folder/MODEL/imported`` and writes ``folder/NAME/stepped`` (the weights after the step).

    Returns:
        Per case the reported means; empty on ranks that are not of the last pipeline stage.
    """
    results = []
    for case in cases:
        results.append(_run_case(case, folder))
        _leave_groups()
    return results


def _leave_groups() -> None:
    """Destroy all process groups but the world: gloo's threads of the old ones would slow the next case down."""
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()
    for group in list(torch.distributed.distributed_c10d._world.pg_map):
        if group is not torch.distributed.distributed_c10d._get_default_group():
            torch.distributed.destroy_process_group(group)
    gc.collect()  # a model is full of cycles and holds its groups


def _run_case(case: Case, folder: Path) -> dict[str, float]:
    hierarchy = [2, case.cp // 2] if case.cp_comm_type == "a2a+p2p" else None
    parallel_state.initialize_model_parallel(
        case.tp, case.pp, context_parallel_size=case.cp, hierarchical_context_parallel_sizes=hierarchy
    )
    model_parallel_cuda_manual_seed(case.seed)
    hf_config = read_json_object(folder / case.model / "hf" / "config.json")
    options = megatron_options(hf_config)
    config = transformer_config(
        options,
        tensor=case.tp,
        pipeline=case.pp,
        context=case.cp,
        sequence=case.sequence_parallel,
        cp_comm_type=[case.cp_comm_type],
        dtype=torch.float32,
    )
    _configure(config, case)
    shape = ModelShape.of(options, rope_parameters(hf_config), multiple=case.tp)
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    model = build_model(config, shape, pre_process=first, post_process=last)
    weights = dist_checkpointing.load(model.sharded_state_dict(), str(folder / case.model / "imported" / "release"))
    model.load_state_dict(weights, strict=False)
    schedule = get_forward_backward_func()
    if case.reference == "online":
        imported = folder / case.reference_model / "imported"
        frozen = load_frozen(
            imported,
            dtype=torch.float32,
            sequence_parallel=case.sequence_parallel,
            cp_comm_type=[case.cp_comm_type],
            transformer_impl="local",
            longest_trunk=64,
        )
        schedule = OnlineReference(frozen, OBJECTIVES[case.objective].reference).before(schedule)
    reports = _step(case, config, shape, model, schedule)
    stepped = folder / case.name / "stepped"
    if torch.distributed.get_rank() == 0:
        stepped.mkdir(parents=True)
    torch.distributed.barrier()
    dist_checkpointing.save(model.sharded_state_dict(), str(stepped))
    return reports


def _configure(config: TransformerConfig, case: Case) -> None:
    config.calculate_per_token_loss = True
    config.finalize_model_grads_func = finalize_model_grads
    if case.recompute in ("full", "keep-attention"):
        config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    elif case.recompute == "selective":
        config.recompute_granularity, config.recompute_modules = "selective", ["core_attn"]


def _step(
    case: Case, config: TransformerConfig, shape: ModelShape, model: torch.nn.Module, schedule: Callable[..., Any]
) -> dict[str, float]:
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=case.distributed_optimizer, overlap_grad_reduce=case.distributed_optimizer
    )
    ddp = DistributedDataParallel(config, ddp_config, model)
    if ddp_config.overlap_grad_reduce:
        config.no_sync_func = ddp.no_sync
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=STEP * EPSILON,
            adam_beta1=0.0,
            adam_beta2=0.0,
            adam_eps=EPSILON,
            weight_decay=0.0,
            clip_grad=0.0,
            use_distributed_optimizer=case.distributed_optimizer,
        ),
        [ddp],
    )
    settings = StepSettings(
        vocab_size=shape.vocab_size,
        sequence_multiple=case.tp if case.sequence_parallel else 1,
        trunk_multiple=case.trunk_multiple,
        objective=OBJECTIVES[case.objective],
        coefficients=OBJECTIVES[case.objective].coefficients(coefficients(case.objective)),
        nll_tokens="all" if case.nll_over_all else "response",
        max_turns=case.num_turns,
        length_buckets=(64,),
        keep_attention=case.recompute == "keep-attention",
    )
    ddp.zero_grad_buffer()
    losses = schedule(
        forward_step_func=partial(forward_step, settings=settings),
        data_iterator=_micro_batches(case, settings),
        model=[ddp],
        num_microbatches=case.num_pairs // case.dp // case.pairs_per_microbatch,
        seq_length=0,
        micro_batch_size=1,
        forward_only=False,
    )
    successful, _, _ = optimizer.step()
    assert successful
    return _means(losses)


def _micro_batches(case: Case, settings: StepSettings) -> Iterator[MicroBatch]:
    """This rank's."""
    own = random_pairs(case)[parallel_state.get_data_parallel_rank() :: case.dp]
    cp_rank = parallel_state.get_context_parallel_rank()
    for first in range(0, len(own), case.pairs_per_microbatch):
        samples = own[first : first + case.pairs_per_microbatch]
        yield micro_batch(samples, settings=settings, cp_rank=cp_rank, cp_size=case.cp)


def _means(losses: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """As megatron/training/training.py, train_step reduces what the loss function reports."""
    means = {}
    for name in losses[0] if losses else ():
        total = torch.stack([loss[name] for loss in losses]).sum(dim=0)
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        means[name] = (total[0] / total[1]).item()
    take_breakdowns(means)
    return means


def gradients(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    """Gradients by Hugging Face name: the difference of ``imported`` and ``stepped``, over STEP."""
    model = folder / case.model
    before, after = CheckpointReader(model / "imported" / "release"), CheckpointReader(folder / case.name / "stepped")
    shape = architecture(read_json_object(model / "hf" / "config.json"))
    found = {}
    for rule in name_table(shape):
        dims = before.shape(rule.megatron)
        zeros = (0,) * len(dims)
        old, new = (side.read(rule.megatron, zeros, dims).double() for side in (before, after))
        gradient = (old - new) / STEP
        for layer in range(shape.num_layers if rule.per_layer else 1):
            parts = rule.cut(gradient[layer] if rule.per_layer else gradient)
            found.update(zip(rule.hf_names(layer), parts, strict=True))
    return found


def result(case: Case, reports: dict[str, float], folder: Path) -> Result:
    """The system's step in the oracle's form."""
    return Result(reports, gradients(case, folder))
