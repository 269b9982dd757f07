"""What a run goes on from: the newest whole checkpoint of its own folder, with what decided its course unchanged."""

import argparse
import json
from pathlib import Path

from megatron_longpo.arguments.run_settings import course
from megatron_longpo.arguments.settings import LongPOSettings
from megatron_longpo.console import say
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file
from megatron_longpo.hf.folder import RELEASE, TRACKER_FILE, has_steps, newest_whole, step_of
from megatron_longpo.hf.training_record import training_record_at


def choose_checkpoint(args: argparse.Namespace, source: Path) -> None:
    """Set ``args.load`` to ``--save`` where it holds a checkpoint of this run, so that a job requeued with its own
    command goes on, and ``args.ckpt_step`` where the checkpoint that would be loaded is not whole.

    Every rank comes to the same: it looks at files that no rank changes before all have started.

    Args:
        source: the folder that holds the model's description.

    Raises:
        UserError: no checkpoint of the folder is whole, or it is another run's.
    """
    load, save = Path(args.load or args.pretrained_checkpoint), Path(args.save) if args.save else None
    is_own = save is not None and load.resolve() == save.resolve()
    if save and not is_own and not args.pretrained_checkpoint and has_steps(save) and _is_imported(source):
        step, faults = (args.ckpt_step, []) if args.ckpt_step else newest_whole(save)
        if step is None and not (save / TRACKER_FILE).is_file():  # killed in its first save
            _say(args, f"--save {save} holds no whole checkpoint ({'; '.join(faults)}): starting from {load}")
            return
        _say(args, f"resuming from --save {save}, which holds a checkpoint of this run")
        args.load, load, is_own = args.save, save, True
    if args.ckpt_step or not has_steps(load):
        return
    step, faults = newest_whole(load)
    if step is None:
        raise UserError(f"{load} holds no whole checkpoint: {'; '.join(faults)}; remove it, or choose another")
    if faults and not is_own:
        raise UserError(f"{load}: {'; '.join(faults)}; --ckpt-step {step} is whole")
    if faults:
        _say(args, f"passed over in {load}: {'; '.join(faults)}; going on from step {step}")
        args.ckpt_step = step


def mend_tracker(args: argparse.Namespace) -> None:
    """Let the tracker name the step that is gone on from: Megatron reads it, whatever ``--ckpt-step`` says, and ends
    where it cannot (megatron/training/checkpointing.py, read_metadata)."""
    folder = Path(args.load or "")
    if args.ckpt_step and args.save and folder.resolve() == Path(args.save).resolve() and newest_whole(folder)[1]:
        with atomic_file(folder / TRACKER_FILE) as partial:
            partial.write_text(str(args.ckpt_step), encoding="ascii")


def check_course(args: argparse.Namespace, settings: LongPOSettings) -> None:
    """Hold what a run goes on with to what it began with: only its count of samples says which pairs it has seen.

    Raises:
        UserError: something changed, and --longpo-allow-changes was not given.
    """
    load = Path(args.load or "")
    if args.longpo_allow_changes or args.finetune or args.skip_train or not (load / TRACKER_FILE).is_file():
        return
    if not (stages := training_record_at(load, step_of(load, args.ckpt_step))):
        return
    before, now = stages[-1].stretches[-1].settings, json.loads(json.dumps(course(args, settings)))
    changed = [
        f"{section} {name} was {before[section][name]!r} and is {value!r}"
        for section, values in now.items()
        for name, value in values.items()
        if name in before.get(section, {}) and before[section][name] != value
    ]
    if changed:
        raise UserError(
            f"{load} was trained otherwise: {'; '.join(changed)}; give what it was, another --save, or "
            "--longpo-allow-changes to go on with this"
        )


def _is_imported(source: Path) -> bool:
    tracker = source / TRACKER_FILE
    return tracker.is_file() and tracker.read_text(encoding="utf-8", errors="replace").strip() == RELEASE


def _say(args: argparse.Namespace, text: str) -> None:
    if args.rank == 0:
        say(text)
