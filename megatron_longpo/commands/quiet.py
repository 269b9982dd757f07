"""Megatron without what it says about parts that the data commands never use."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet_megatron() -> Generator[None]:
    """Hide that Transformer Engine, Apex, CUDA and ranks are missing: a dataset needs none of them."""
    cuda_logger = logging.getLogger("torch.utils.cpp_extension")
    level = cuda_logger.level
    cuda_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
            warnings.filterwarnings("ignore", message="Could not determine rank")
            yield
    finally:
        cuda_logger.setLevel(level)
