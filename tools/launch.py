"""``megatron-longpo launch`` from a checkout that is not installed."""

import os.path
import sys

# This folder would hide the standard library's `inspect`; the checkout takes its place.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

from megatron_longpo.commands.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("launch", sys.argv[1:]))
