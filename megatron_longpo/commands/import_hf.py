"""``megatron-longpo import-hf``: Hugging Face folder -> Megatron distributed checkpoint."""

import argparse
import time
from pathlib import Path

from megatron_longpo.errors import UserError

DTYPE_CHOICES = ("as-is", "fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--hf", type=Path, required=True, metavar="DIR", help="folder with config.json, safetensors and tokenizer"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint folder to write; must not exist or be empty",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_CHOICES, default="as-is", help="dtype to store the weights in (default: as they are)"
    )
    parser.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja template for the model from now on, kept in OUTPUT/hf (default: the folder's)",
    )
    add_verify_options(parser)


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """What verify.verify_if_asked reads."""
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="compare logits with those of transformers, in fp32 (default: for models under 1B parameters)",
    )
    parser.add_argument(
        "--verify-prompts",
        type=Path,
        metavar="FILE",
        help="compare on these prompts, text, one a line (default: random tokens)",
    )


def check_verify_options(args: argparse.Namespace) -> None:
    """Refuse what would otherwise show after the work is done."""
    if args.verify_prompts is None:
        return
    if args.verify is False:
        raise UserError("--verify-prompts with --no-verify: nothing would be compared; leave out one of them")
    if not args.verify_prompts.is_file():
        raise UserError(f"--verify-prompts {args.verify_prompts}: no such file; give a text file, one prompt a line")


def verify(args: argparse.Namespace, hf: Path, checkpoint: Path, iteration: int | None = None) -> None:
    """See verify.verify_if_asked."""
    from megatron_longpo.commands.verify import verify_if_asked  # slow to import

    verify_if_asked(args, hf, checkpoint, iteration)


def run(args: argparse.Namespace) -> None:
    """Import and say what came out."""
    check_verify_options(args)
    from megatron_longpo.hf.import_hf import import_hf  # torch is slow to import; --help need not wait for it

    started = time.monotonic()
    identity = import_hf(
        args.hf, args.output, args.dtype, args.chat_template, lambda folder: verify(args, args.hf, folder)
    )
    print(
        f"imported {identity.num_parameters:,} parameters, {identity.dtype}, weights {identity.weights_sha256[:12]}, "
        f"tokenizer {identity.tokenizer_fingerprint[:12]} -> {args.output} in {time.monotonic() - started:.1f} s"
    )
