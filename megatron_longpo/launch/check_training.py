"""Check training's options against dataset, checkpoint and reference, as rank 0 of a run would, and do nothing else.

A process of its own, started by `checks.py`: the options are read from its command line, the number of ranks from
WORLD_SIZE, and what Megatron sets and prints ends with it.
"""

from megatron_longpo import platform, run_errors
from megatron_longpo.quiet import quiet_libraries

quiet_libraries()
platform.activate(announce=False)  # before Megatron is imported

from megatron_longpo.arguments.parse import check  # noqa: E402
from megatron_longpo.console import quiet  # noqa: E402


def main() -> int:
    """Return 0, or 2 having said in one line what is wrong."""
    try:
        with quiet(verbose=False):
            check()
    except (Exception, SystemExit) as error:
        message = run_errors.explanation(error)
        if message is None:
            raise
        run_errors.report(message)
        return 2
    return 0


if __name__ == "__main__":
    run_errors.leave(main())
