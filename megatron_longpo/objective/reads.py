"""Which trees each objective reads, apart from what it computes of them: the planner needs no more, and no torch."""

from typing import NamedTuple

from megatron_longpo.data.trees import TreeKind

LONG, LONG_CHOSEN, LONG_REJECTED = TreeKind("long"), TreeKind("long", ("chosen",)), TreeKind("long", ("rejected",))
SHORT, SHORT_CHOSEN = TreeKind("short"), TreeKind("short", ("chosen",))


class Reads(NamedTuple):
    """The trees of an objective."""

    policy: tuple[TreeKind, ...]
    """The first is the long tree."""
    reference: tuple[TreeKind, ...] = ()
    """Empty without one."""


READS = {
    "longpo": Reads((LONG,), (SHORT,)),
    "longpo-per-turn": Reads((LONG,), (SHORT,)),
    "hinge": Reads((LONG,), (SHORT,)),
    "ipo": Reads((LONG,), (SHORT,)),
    "dpo": Reads((LONG,), (LONG,)),
    "simpo": Reads((LONG,)),
    "orpo": Reads((LONG,)),
    "solopo-dpo": Reads((LONG_CHOSEN, SHORT), (LONG_CHOSEN, SHORT)),
    "solopo-dpo-short-reference": Reads((LONG_CHOSEN, SHORT), (SHORT,)),
    "solopo-simpo": Reads((LONG_CHOSEN, SHORT)),
    "solopo-orpo": Reads((LONG_CHOSEN, SHORT)),
    "sft": Reads((LONG_CHOSEN,)),
    "sft-rejected": Reads((LONG_REJECTED,)),
    "sft-constrained": Reads((LONG_CHOSEN,), (SHORT_CHOSEN,)),
}
"""Of every objective, by its name."""
