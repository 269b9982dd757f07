"""Pairs as the LongPO release publishes them (DAMO-NLP-SG/LongPO, data_prepare/), told apart by their columns.

    raw        prompt (the long document) and, one entry a turn, short_prompts, questions, chosens, rejecteds
    tokenised  {,ref_}{chosen,rejected}_{input_ids,attention_mask,labels}; without ref_ the long conversation with all
               turns, with ref_ one short conversation a turn, a list of lists padded to the longest

Responses are found by their labels (labels.py). The border of trunk and branches is the first response's, never the end
of what chosen and rejected have in common, which can reach into the answers. Short conversations are matched to the
turns by their responses, whatever their order.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from megatron_longpo.data.labels import Conversation, Template, num_equal, read_conversation
from megatron_longpo.data.render import Branch, Overlong, RenderedPair, TrunkAndBranches
from megatron_longpo.data.tokenise import IntArray
from megatron_longpo.errors import TooLong, UserError

RAW_COLUMNS = ("prompt", "short_prompts", "questions", "chosens", "rejecteds")
SIDES = ("chosen", "rejected", "ref_chosen", "ref_rejected")
KINDS = ("input_ids", "attention_mask", "labels")
TOKENISED_COLUMNS = tuple(f"{side}_{kind}" for side in SIDES for kind in KINDS)
Layout = Literal["tokenised", "raw"]


def layout_of(columns: Iterable[str], where: str) -> Layout:
    """The layout these columns belong to; raises UserError where they are neither's."""
    present = set(columns)
    if present.issuperset(TOKENISED_COLUMNS):
        return "tokenised"
    if present.issuperset(RAW_COLUMNS):
        return "raw"
    nearer = TOKENISED_COLUMNS if present & set(TOKENISED_COLUMNS) else RAW_COLUMNS
    missing = [name for name in nearer if name not in present]
    raise UserError(
        f"{where}: lacks the columns {', '.join(missing)} (it has {', '.join(sorted(present)) or 'none'}); published"
        f" pairs have {', '.join(RAW_COLUMNS)}, or {', '.join(TOKENISED_COLUMNS[:3])} and the same for"
        f" {', '.join(SIDES[1:])}"
    )


def raw_line(row: Mapping[str, Any], pair_id: str, where: str) -> bytes:
    """A row of the raw layout as the JSON line that `pair.parse_pair` reads and checks.

    Raises:
        UserError: a column that has an entry a turn is no list, or they differ in length.
    """
    columns = ("short_prompts", "questions", "chosens", "rejecteds")
    for name in columns:
        if not isinstance(row[name], list):
            raise UserError(f"{where}: {name} must be a list with an entry a turn, not {type(row[name]).__name__}")
    lengths = {name: len(row[name]) for name in columns}
    if len(set(lengths.values())) != 1:
        seen = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"{where}: the columns have different numbers of turns ({seen}); every turn needs all of them")
    names = ("short_context", "instruction", "chosen", "rejected")
    turns = [dict(zip(names, turn, strict=True)) for turn in zip(*(row[name] for name in columns), strict=True)]
    return json.dumps({"id": pair_id, "context": row["prompt"], "turns": turns}).encode()


def recover_pair(
    row: Mapping[str, Sequence[IntArray]], pair_id: str, template: Template, max_length: int, overlong: Overlong
) -> RenderedPair | None:
    """A row of the tokenised layout as trunk, branches and spans; None if it is too long and ``overlong`` is ``skip``.

    Args:
        row: column -> its innermost lists: one for the long conversation, one a turn for the short ones.

    Raises:
        UserError: the row cannot be recovered, or (`TooLong`) is too long and ``overlong`` is ``refuse``.
    """
    found = {side: _conversations(row, side, template) for side in SIDES}
    for side in ("chosen", "rejected"):
        if len(found[side]) != 1:
            raise UserError(f"{side}_input_ids holds {len(found[side])} conversations; it needs one, with all turns")
    long = _join(found["chosen"][0], found["rejected"][0], "the long conversation")
    num_turns = len(long.chosen.spans)
    for side in ("ref_chosen", "ref_rejected"):
        if len(found[side]) != num_turns:
            raise UserError(
                f"{side}_input_ids holds {len(found[side])} short conversations, but the long one has {num_turns}"
                " turns; it needs one a turn"
            )
    pairs = zip(found["ref_chosen"], found["ref_rejected"], strict=True)
    short = [_join(*pair, f"short conversation {index}") for index, pair in enumerate(pairs)]
    for index, item in enumerate(short):
        if len(item.chosen.spans) != 1:
            raise UserError(f"short conversation {index} has {len(item.chosen.spans)} responses; it needs one")
    rendered = RenderedPair(pair_id, long, _in_order_of_turns(long, short))
    longest = max(item.lengths.longer for item in (long, *short))
    if longest <= max_length:
        return rendered
    if overlong == "skip":
        return None
    raise TooLong(
        f"a conversation of {longest} tokens, more than the limit of {max_length} (--max-length); raise the limit, or"
        " choose --overlong skip"
    )


def _conversations(row: Mapping[str, Sequence[IntArray]], side: str, template: Template) -> list[Conversation]:
    ids, masks, labels = (row[f"{side}_{kind}"] for kind in KINDS)
    if not len(ids) == len(masks) == len(labels):
        raise UserError(
            f"{side}_input_ids holds {len(ids)} conversations, {side}_attention_mask {len(masks)} and {side}_labels"
            f" {len(labels)}; they need the same number"
        )
    found: list[Conversation] = []
    for index, columns in enumerate(zip(ids, masks, labels, strict=True)):
        try:
            found.append(read_conversation(*columns, template))
        except UserError as error:
            raise UserError(f"{side}[{index}]: {error}") from error
    return found


def _join(chosen: Conversation, rejected: Conversation, what: str) -> TrunkAndBranches:
    """Both sides of one conversation on their common trunk; see render.py for where it ends."""
    if len(chosen.spans) != len(rejected.spans):
        raise UserError(
            f"{what}: chosen has {len(chosen.spans)} responses, rejected {len(rejected.spans)}; both need all turns"
        )
    for turn, (ours, theirs) in enumerate(zip(_instructions(chosen), _instructions(rejected), strict=True)):
        if not np.array_equal(ours, theirs):
            raise UserError(
                f"{what}: chosen and rejected differ before response {turn} (after {num_equal(ours, theirs)} of"
                f" {len(ours)} and {len(theirs)} tokens); both must ask the same of the same context"
            )
    for turn, (ours, theirs) in enumerate(zip(_responses(chosen), _responses(rejected), strict=True)):
        if np.array_equal(ours, theirs):
            raise UserError(f"{what}: response {turn} is the same in chosen and rejected; drop the row or the turn")
    last_prompt = int(chosen.spans[0, 0]) - 1
    if last_prompt < 1:
        raise UserError(f"{what}: {last_prompt + 1} tokens before the first response; it needs a context of at least 2")
    branches = (Branch(item.ids[last_prompt:], item.spans - np.int32(last_prompt)) for item in (chosen, rejected))
    return TrunkAndBranches(chosen.ids[:last_prompt], *branches)


def _in_order_of_turns(long: TrunkAndBranches, short: Sequence[TrunkAndBranches]) -> tuple[TrunkAndBranches, ...]:
    waiting = list(short)
    ordered: list[TrunkAndBranches] = []
    for turn, key in enumerate(_response_keys(long)):
        match = next((item for item in waiting if _response_keys(item) == [key]), None)
        if match is None:
            raise UserError(
                f"no short conversation has the responses of turn {turn} of the long one; the same answers must stand"
                " in both: drop the row"
            )
        waiting.remove(match)
        ordered.append(match)
    return tuple(ordered)


def _response_keys(both: TrunkAndBranches) -> list[tuple[bytes, bytes]]:
    """What tells the two responses of every turn from others."""
    chosen, rejected = (
        [branch.tokens[start:end].tobytes() for start, end in branch.spans] for branch in (both.chosen, both.rejected)
    )
    return list(zip(chosen, rejected, strict=True))


def _instructions(item: Conversation) -> list[IntArray]:
    """What stands before each response: the trunk's part, then the instructions."""
    starts = [0, *item.spans[:-1, 1].tolist()]
    return [item.ids[start:end] for start, end in zip(starts, item.spans[:, 0].tolist(), strict=True)]


def _responses(item: Conversation) -> list[IntArray]:
    return [item.ids[start:end] for start, end in cast(list[list[int]], item.spans.tolist())]
