"""RMSprop inside Megatron: the optimizer of the released LongPO runs, torch.optim.RMSprop with its defaults.

Megatron 0.19 knows a fixed list of optimizers, so it builds Adam and all that stands around it: parameter groups, fp32
main parameters, the distributed optimizer's shards, CPU offload. Adam has no state before its first step, and RMSprop
takes its place.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT
from torch.optim.rmsprop import rmsprop

from megatron_longpo import megatron_hooks

STATE = "square_avg"
"""The one state tensor of a parameter, under torch's name: no optimizer of Megatron mistakes it for its own."""

SHARED_WITH_ADAM = {"lr", "eps", "weight_decay"}
"""What a parameter group says that both optimizers understand."""


class RMSprop(Optimizer):
    """torch.optim.RMSprop, not centred and without momentum, with one state tensor a parameter.

        square_avg <- alpha * square_avg + (1 - alpha) * g^2
        p          <- p - lr * g / (sqrt(square_avg) + eps)

    There is no bias correction: the first step moves a parameter by lr / sqrt(1 - alpha), ten times ``lr`` with the
    default, so warm up. ``weight_decay`` is torch's L2 term, added to g; it is not AdamW's, which leaves g alone.

    The update is torch's own function, on CUDA over a whole group at once (foreach), which takes a group's size in
    fp32 as temporary memory. torch's class is not used because it counts steps in a tensor of each parameter's state;
    no update needs them, and Megatron's checkpoints have no place for them.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient; a closure is never given by Megatron."""
        assert closure is None
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            rmsprop(
                params,
                [parameter.grad for parameter in params],
                [self.square_avg(parameter) for parameter in params],
                [],
                [],
                [torch.zeros(()) for _ in params],  # the steps that torch counts
                lr=group["lr"],
                alpha=group["alpha"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                momentum=0.0,
                centered=False,
            )

    def square_avg(self, parameter: Tensor) -> Tensor:
        """The running mean of the parameter's squared gradient, zero before its first step."""
        state = self.state[parameter]
        if STATE not in state:
            state[STATE] = torch.zeros_like(parameter)
        return state[STATE]


def use_rmsprop(alpha: float) -> None:
    """Let Megatron's training program train with RMSprop where it would with Adam."""
    megatron_hooks.change_optimizer(partial(_replace_adam, alpha=alpha), (STATE,))


def _replace_adam(part: Any, alpha: float) -> None:
    """Exchange the torch optimizer inside one of Megatron's."""
    adam = part.optimizer
    for group in adam.param_groups:
        for name in adam.defaults.keys() - SHARED_WITH_ADAM:
            group.pop(name, None)
        group["alpha"] = alpha
    if isinstance(adam, HybridDeviceOptimizer):
        part.optimizer = _offloaded(adam)
    else:
        part.optimizer = RMSprop([{"params": []}])
        part.optimizer.param_groups = adam.param_groups  # as distrib_optimizer.py: shards are no leaves
    part.init_state_fn = _init_state


def _init_state(optimizer: RMSprop, _: Any = None) -> None:
    """Before a checkpoint is loaded: Megatron reads what the state has names and shapes for."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.square_avg(parameter)


def _offloaded(adam: HybridDeviceOptimizer) -> HybridDeviceOptimizer:
    """``--optimizer-cpu-offload``: the same parameters on the CPU, as hybrid_optimizer.py chose them."""
    classes = {"cpu_optimizer_cls": RMSprop, "gpu_optimizer_cls": RMSprop}
    own = {name: value for name, value in adam.defaults.items() if name not in ("betas", "bias_correction", "fused")}
    optimizer = HybridDeviceOptimizer(adam.param_groups, **own | classes)
    for group in optimizer.param_groups:
        for name in classes:
            del group[name]  # groups are stored in checkpoints, which torch reads without executing code
    return optimizer
