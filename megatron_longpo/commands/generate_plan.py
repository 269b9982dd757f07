"""What ``generate --dry-run`` prints: what a run will ask, and how long that will take."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from megatron_longpo.generate.corpus.documents import Counts
from megatron_longpo.generate.estimate import Estimate, Speed
from megatron_longpo.generate.report.summary import duration


def print_counts(counts: Counts, whole: Estimate) -> None:
    """Tables of the documents and of the requests, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for title, values in (("documents", asdict(counts)), ("requests, if every chunk gives a turn", asdict(whole))):
        table = Table("", title=title, title_justify="left", show_header=False)
        table.add_column(justify="right")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), f"{value:,}")
        console.print(table)


def print_speed(speed: Speed, whole: Estimate) -> None:
    """What was measured, and what it means for all contexts."""
    seconds = speed.seconds * whole.contexts / speed.contexts
    print(
        f"{speed.contexts} long contexts at once took {duration(speed.seconds)} and gave {speed.pairs} pairs: "
        f"{speed.prompt_tokens / speed.seconds:,.0f} prompt and {speed.new_tokens / speed.seconds:,.0f} new tokens/s"
    )
    print(
        f"all {whole.contexts:,} take about {duration(seconds)} with this engine, and may give "
        f"{whole.contexts * speed.pairs // speed.contexts:,} pairs"
    )
