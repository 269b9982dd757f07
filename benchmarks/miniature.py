"""The miniature from its committed base: what it gains and loses by method, and the seconds of every stage.

python -m benchmarks.miniature
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import write_result

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "miniature.png"


def main() -> None:
    """Run all stages in a fresh folder; write the raw numbers, and the picture for the README."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "-m", "examples.miniature.run", "--work", work], check=True)
        summary = json.loads(Path(work, "summary.json").read_text(encoding="utf-8"))
        shutil.copyfile(Path(work, "accuracy.png"), PICTURE)
    write_result("miniature", summary)


if __name__ == "__main__":
    main()
