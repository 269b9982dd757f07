"""Imported once by the server that forks.py forks its processes from."""

from megatron_longpo.quiet import quiet_libraries

quiet_libraries()

import megatron_longpo.commands.main  # noqa: E402
import megatron_longpo.reference.score  # noqa: E402
import megatron_longpo.train  # noqa: E402, F401
from examples.miniature import evaluate  # noqa: E402, F401
