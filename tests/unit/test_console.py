"""console.py: what reaches the terminal, and what is kept of the rest."""

import io
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from megatron_longpo.console import quiet, say


def printed(log: Path | None, verbose: bool = False) -> str:
    """What the terminal shows of a run that prints as Megatron does."""
    with redirect_stdout(io.StringIO()) as terminal, warnings.catch_warnings(), quiet(verbose) as console:
        print("using world size: 8")
        if console:
            console.keep_in(log)
        say("ours")
        print("> initial", end="")
        print("ized")
        warnings.warn("a FutureWarning of torch", FutureWarning, stacklevel=1)
        print("WARNING: one_logger package is required")
        print(" WARNING: setting args.overlap_param_gather to True")
        print("  [2026] successfully saved checkpoint from iteration 2")
        print("no end of line", end="", flush=True)
    assert not isinstance(sys.stdout, type(console))
    return terminal.getvalue()


def test_megatrons_lines_go_to_the_log(tmp_path: Path) -> None:
    shown = printed(tmp_path / "run" / "megatron.log")
    assert shown.splitlines() == [
        "ours",
        " WARNING: setting args.overlap_param_gather to True",
        "  [2026] successfully saved checkpoint from iteration 2",
    ]
    kept = (tmp_path / "run" / "megatron.log").read_text()
    assert kept.startswith("using world size: 8\n> initialized\n") and kept.endswith("no end of line\n")
    assert "a FutureWarning of torch" in kept and "one_logger" in kept and "ours" not in kept
    printed(tmp_path / "run" / "megatron.log")
    assert (tmp_path / "run" / "megatron.log").read_text().count("> initialized") == 2, "a resumed run goes on"


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    assert printed(None).startswith("ours\n") and not list(tmp_path.iterdir())


def test_verbose_shows_everything() -> None:
    shown = printed(None, verbose=True)
    assert "using world size: 8\n" in shown and "> initialized\n" in shown and "one_logger" in shown


def test_an_error_leaves_stdout_as_it_was() -> None:
    before = sys.stdout
    try:
        with quiet(False):
            raise ValueError("in training")
    except ValueError:
        pass
    assert sys.stdout is before
