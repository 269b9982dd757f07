"""Imported once by the server that tests/ranks.py forks its ranks from."""

from megatron_longpo import platform

platform.activate(announce=False)

import megatron.core.dist_checkpointing  # noqa: E402
import megatron.core.optimizer  # noqa: E402, F401

import megatron_longpo.model.build  # noqa: E402
import megatron_longpo.step  # noqa: E402, F401
