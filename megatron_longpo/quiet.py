"""A process without what libraries say of parts that are absent on purpose."""

import logging
import warnings


def quiet_libraries() -> None:
    """Hide that Transformer Engine, Apex, CUDA or ranks are missing, and what is deprecated inside Megatron and torch.

    Call before Megatron is imported: it warns as it loads.
    """
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=r"megatron|torch")
    for name in ("megatron", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
