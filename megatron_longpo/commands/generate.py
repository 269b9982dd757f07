"""``megatron-longpo generate``: long documents -> preference pairs, by the model itself (docs/generate.md).

Everything that was answered stands in ``OUTPUT.journal/`` before it is used: the same command goes on where it was
stopped.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.commands import generate_options
from megatron_longpo.commands.dataset_output import given_template
from megatron_longpo.commands.generate_engines import OpenEngine, check_limits, engine_opening
from megatron_longpo.commands.generate_options import settings_of, shard_of
from megatron_longpo.commands.generate_plan import print_counts, print_speed
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.corpus import Corpus, CorpusOptions
from megatron_longpo.generate.corpus.documents import Counts
from megatron_longpo.generate.estimate import estimate, measure, sample_size
from megatron_longpo.generate.journal import Journal, Shard
from megatron_longpo.generate.merge import engine_of, merge, no_context
from megatron_longpo.generate.run import Work, run_shard
from megatron_longpo.generate.settings import Settings

if TYPE_CHECKING:
    from megatron_longpo.commands.generate_display import GenerateDisplay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    generate_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Generate, or merge what was generated, and print what came of it."""
    shard, opening, corpus = prepare(args)
    if args.dry_run:
        return asyncio.run(_dry_run(args, corpus, shard, opening))
    if args.merge is None:
        asyncio.run(_generate(args, corpus, shard, opening))
    if args.merge is None and shard.of > 1:
        print(f"shard {shard.number} of {shard.of} is done; when all are, give --merge {shard.of} in place of --shard")
        return 0
    return _merge(args, corpus, args.merge or 1)


def prepare(args: argparse.Namespace) -> tuple[Shard, OpenEngine, Corpus]:
    """All that can be had without opening an engine or reading a document.

    Raises:
        UserError: options, model folder or documents cannot be used.
    """
    settings, shard = settings_of(args), shard_of(args)
    _check_output(args)
    return shard, engine_opening(args, settings), _open_corpus(args, settings)


def journal_folder(output: Path) -> Path:
    """The folder beside the output with a file a shard. It stays after the output: every answer in it was paid for."""
    return output.with_name(f"{output.name}.journal")


def report_path(output: Path) -> Path:
    """Path of the report beside the output."""
    return output.with_name(f"{output.name}.report.html")


async def _generate(args: argparse.Namespace, corpus: Corpus, shard: Shard, open_engine: OpenEngine) -> None:
    """Bring the shard's journal to its end."""
    from megatron_longpo.commands.generate_display import GenerateDisplay

    settings = corpus.settings
    print(f"generate: opening {args.endpoint or args.model} ({args.engine})", file=sys.stderr, flush=True)
    run_all, opening = _runner(args, open_engine)
    async with aclosing(await opening) as engine:
        check_limits(engine.context_limits, settings, asks=args.questions is None)
        header = {**_header(corpus), "engine": dict(engine.identity)}
        with (
            Journal(journal_folder(args.output), shard, header) as journal,
            GenerateDisplay(journal, settings.min_turns) as display,
        ):
            counts = Counts()
            counting = asyncio.create_task(_count_contexts(corpus, shard, display))
            work = Work(settings=settings, control_token=corpus.control_token, observer=display)
            try:
                await run_all(corpus.contexts(shard, counts), engine, journal, work)
            finally:
                counting.cancel()
            journal.end(asdict(counts))


def _runner(args: argparse.Namespace, open_engine: OpenEngine) -> tuple[Any, Awaitable[Any]]:
    """What runs a shard, and the engine or engines that it takes, to be opened."""
    if args.runner == "local":
        return run_shard, open_engine()
    from megatron_longpo.generate.on_ray.ray_engines import open_ray_engines
    from megatron_longpo.generate.on_ray.ray_runner import run_shard_on_ray

    return run_shard_on_ray, open_ray_engines(
        open_engine,
        num_engines=args.num_engines,
        num_gpus_per_engine=args.gpus_per_engine,
        address=args.ray_address,
    )


async def _count_contexts(corpus: Corpus, shard: Shard, display: "GenerateDisplay") -> None:
    """Count them beside the work, so that the time left is known: it reads the whole corpus once."""
    display.total = await asyncio.to_thread(corpus.expected_contexts, shard)


async def _dry_run(args: argparse.Namespace, corpus: Corpus, shard: Shard, open_engine: OpenEngine) -> int:
    """Count everything, and carry out the procedure for as many documents as keep the engine busy."""
    if args.runner != "local":
        raise UserError("--dry-run measures one engine here; leave out --runner ray")
    settings, counts = corpus.settings, Counts()
    async with aclosing(await open_engine()) as engine:
        check_limits(engine.context_limits, settings, asks=args.questions is None)
        contexts = [context for _, context in corpus.contexts(shard, Counts(), sample_size(engine, settings))]
        whole = await asyncio.to_thread(estimate, (context for _, context in corpus.contexts(shard, counts)), settings)
        print_counts(counts, whole)
        if not contexts:
            raise UserError(no_context(asdict(counts)))
        print(f"timing {len(contexts)} of them ...", flush=True)
        print_speed(await measure(contexts, engine, settings, corpus.control_token), whole)
    return 0


def _merge(args: argparse.Namespace, corpus: Corpus, num_shards: int) -> int:
    from rich.console import Console

    from megatron_longpo.commands.generate_display import print_summary
    from megatron_longpo.generate.report.report import write_report

    folder = journal_folder(args.output)
    header = {**_header(corpus), "engine": engine_of(folder / Shard(1, num_shards).file_name)}
    manifest = merge(folder, num_shards, header, args.output, min_turns=corpus.settings.min_turns)
    write_report(args.output, manifest, report_path(args.output), count_tokens=corpus.count.batch)
    print_summary(manifest, args.output, Console(highlight=False, soft_wrap=True))
    return 0


def _header(corpus: Corpus) -> dict[str, Any]:
    """What a journal belongs to, but for the engine."""
    return {"settings": asdict(corpus.settings), "corpus": corpus.identity}


def _open_corpus(args: argparse.Namespace, settings: Settings) -> Corpus:
    from megatron_longpo.data.chat import check_chat_template
    from megatron_longpo.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.model, given_template(args))
    check_chat_template(tokenizer, args.chat_template)
    options = CorpusOptions(
        paths=tuple(args.documents),
        text_field=args.text_field,
        domain=args.domain,
        short=args.short_documents,
        max_duplicate=args.max_duplicate,
        max_contexts=args.max_contexts,
        questions=args.questions,
    )
    return Corpus(options, settings, tokenizer)


def _check_output(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; give the name of a JSONL file")
    if args.output.exists() and not (args.overwrite or args.dry_run):
        raise UserError(f"{args.output} already exists; choose another --output, or give --overwrite")
    if args.merge is not None and args.merge < 1:
        raise UserError(f"--merge {args.merge}: give the number of shards")
