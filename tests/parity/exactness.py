"""Write docs/exactness.md: the measured differences between a training step and the oracle, case by case.

python -m tests.parity.exactness
"""

import argparse
import tempfile
from pathlib import Path

import torch

from tests.parity.cases import COEFFICIENTS, SMALL_BETA
from tests.parity.pairwise import CASES_PER_LAYOUT, SEED, all_cases
from tests.parity.test_step import TOLERANCE, measure

OUTPUT = Path(__file__).parents[2] / "docs" / "exactness.md"
COLUMNS = (
    "loss",
    "nll",
    "preference_loss",
    "constraint",
    "margin",
    "policy_chosen_logp",
    "policy_rejected_logp",
    "gradient",
    "fp32 loss",
    "fp32 gradient",
)
HEAD = f"""# Exactness

One training step through the product (import, shared pass, objective, schedules, gradient reduction, optimizer) against
an oracle that shares no code with it: the Hugging Face model, every conversation a full sequence of its own, plain
autograd (`tests/parity/oracle.py`). Numbers are relative differences: of the reported means, and of the worst element
of the worst weight's gradient over the largest element of that gradient; the margin's is held against the size of the
sums it is a difference of. The product runs in fp32, the oracle in float64. The columns marked fp32 compare with an
fp32 oracle, whose own rounding comes on top.

Limit in the tests, against the float64 oracle: {TOLERANCE:.0e}.

Four pairs of uneven lengths, 4 layers, 8 query heads on 4 key/value heads, vocabulary 131 (padded under tensor
parallelism), reference log-probs given or from a model in memory. Coefficients are far from the defaults, so that an
error in any term shows: {", ".join(f"{name} {value:g}" for name, value in COEFFICIENTS.items())}
(beta {SMALL_BETA:g} for hinge and ipo); each objective takes those that it has.

At least {CASES_PER_LAYOUT} cases for every layout of tensor, pipeline, context (cp) and data parallelism of at most 8
ranks; together they meet every possible pair of switches, the objective among them (`tests/parity/pairwise.py`, seed
{SEED}). A column is empty where the objective does not have the number.

Written by `python -m tests.parity.exactness` with torch {torch.__version__} on CPU.

"""


def main() -> None:
    """Measure all cases and write the table; the last row is the worst of each column."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(all_cases(), Path(folder))
    lines = ["| case | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in measured.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{found[column]:.1e}" if column in found else "" for column in COLUMNS) + " |"
        )
    worst = {column: max(found.get(column, 0.0) for found in measured.values()) for column in COLUMNS}
    lines.append("| **worst** | " + " | ".join(f"**{worst[column]:.1e}**" for column in COLUMNS) + " |")
    OUTPUT.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote docs/exactness.md: {len(measured)} cases, worst gradient {worst['gradient']:.1e}")


if __name__ == "__main__":
    main()
