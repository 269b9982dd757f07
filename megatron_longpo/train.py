"""LongPO training: ``torchrun ... -m megatron_longpo.train --load DIR --longpo-data PREFIX <Megatron's options>``.

The loop, the optimizer, checkpoints, logging and signals are Megatron's ``pretrain``. Here stands what it asks
for: the model and the datasets; the forward step with its loss is step.py.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from megatron_longpo import platform
from megatron_longpo.errors import UserError

platform.activate()  # before Megatron is imported, which looks for CUDA as it loads

from megatron.core.enums import ModelType  # noqa: E402
from megatron.training import get_args, get_timers, pretrain, training  # noqa: E402
from megatron.training.argument_utils import pretrain_cfg_container_from_args  # noqa: E402
from megatron.training.arguments import core_transformer_config_from_args  # noqa: E402
from torch import nn  # noqa: E402

from megatron_longpo.arguments import LongPOSettings, install_writer, parse  # noqa: E402
from megatron_longpo.data.dataset import HeldOutPairs, PairDataset, split_pairs  # noqa: E402
from megatron_longpo.hf.sidecar import copy_sidecar  # noqa: E402
from megatron_longpo.metrics import MetricsWriter  # noqa: E402
from megatron_longpo.model.build import build_model  # noqa: E402
from megatron_longpo.optimizer import use_rmsprop  # noqa: E402
from megatron_longpo.step import forward_step  # noqa: E402


def main() -> int:
    """Train; returns the exit status (2: something the user can fix)."""
    try:
        args, settings = parse()
    except UserError as error:
        _print_once(f"megatron_longpo.train: error: {error}")
        return 2
    if args.save and args.rank == 0:
        copy_sidecar(settings.source, Path(args.save), args.rotary_base, args.max_position_embeddings)
    if settings.rmsprop_alpha is not None:
        use_rmsprop(settings.rmsprop_alpha)
    if args.skip_train:
        _report_evaluation()
    datasets = partial(_datasets, settings=settings)
    datasets.is_distributed = True  # type: ignore[attr-defined]  # every rank reads its own pairs from the mapped file
    pretrain(
        pretrain_cfg_container_from_args(args, None),
        datasets,
        ModelType.encoder_or_decoder,
        partial(forward_step, settings=settings.step),
        model_provider=partial(_model, settings=settings),
    )
    return 0


def _report_evaluation() -> None:
    """Let ``--skip-train`` report its evaluation as training does; Megatron only prints it (training.py, pretrain)."""
    evaluate = training.evaluate_and_print_results
    training.evaluate_and_print_results = lambda *args, **kwargs: evaluate(
        *args, **kwargs | {"write_to_tensorboard": True}
    )


def _print_once(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)


def _model(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
    *,
    settings: LongPOSettings,
) -> nn.Module:
    """Megatron's model provider."""
    return build_model(
        config or core_transformer_config_from_args(get_args()),
        settings.shape,
        pre_process=pre_process,
        post_process=post_process,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
    )


def _datasets(
    num_samples: tuple[int, int, int], vp_stage: int | None = None, *, settings: LongPOSettings
) -> tuple[PairDataset, HeldOutPairs | None, None]:
    """Megatron's dataset provider: shuffled training pairs, held-out pairs in order.

    Called after the checkpoint is loaded, so it is also where the metrics writer learns which step training goes on
    from.
    """
    args = get_args()
    install_writer(lambda tensorboard: MetricsWriter(settings.metrics, tensorboard, _training_seconds, args.iteration))
    train, valid, _ = split_pairs(settings.reader.manifest.num_pairs, args.split)
    training = PairDataset(settings.reader, train, num_samples[0], args.seed, settings.reference)
    period = args.eval_iters * args.eval_global_batch_size
    if not valid or not period:
        return training, None, None
    return training, HeldOutPairs(settings.reader, valid[:period], num_samples[1], period, settings.reference), None


def _training_seconds() -> float:
    """Seconds in training steps so far: Megatron stops this timer around evaluation and saving."""
    timer = get_timers()("interval-time", log_level=0)
    running = time.time() - timer._start_time if timer._started else 0.0
    return timer.active_time() + running


if __name__ == "__main__":
    sys.exit(main())
