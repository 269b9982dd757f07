"""Draw docs/pair.svg, the picture of a pair as one sequence: ``python -m scripts.draw_pair``.

Lengths in pixels. The zigzag split is that of megatron_longpo/model/layout.py.
"""

import argparse
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pair.svg"
WIDTH, HEIGHT = 880, 464
PARTS = {"trunk": 528, "chosen": 136, "rejected": 136}
"""Widths of the sequence's parts at full size."""
NUM_RANKS = 4

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .note { fill: #59636e }
  .label { font-weight: 600; fill: #ffffff }
  .trunk { fill: #2f6db5 } .chosen { fill: #2c8a4b } .rejected { fill: #b8560f }
  .empty { fill: #eef1f4 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d }
    text { fill: #f0f6fc } .note { fill: #9198a1 } .label { fill: #ffffff }
    .empty { fill: #21262d }
  }
"""


def main() -> None:
    """Write the picture; tests/unit/scripts/test_draw_pair.py says whether the committed one is up to date."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PICTURE.write_text(picture(), encoding="utf-8")


def picture() -> str:
    """The picture as SVG."""
    shapes = [*_sequence(40, 50), *_attention(118, 196), *_ranks(500, 196)]
    title = "A pair as one sequence: who attends whom, and how context-parallel ranks share it"
    frame = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", frame, *shapes, "</svg>"]) + "\n"


def _sequence(left: int, top: int) -> list[str]:
    """The whole sequence with the positions of its tokens."""
    inside = ("trunk: long context and instruction, computed once", "chosen", "rejected")
    below = ("positions 0 ... T-1", "positions T, T+1, ...", "positions T, T+1, ...")
    shapes = [_text(left, top - 16, "A pair is one sequence", "title")]
    for (part, width), inner, lower in zip(PARTS.items(), inside, below, strict=True):
        middle = left + width / 2
        shapes.append(_box(left, top, width - 2, 40, part))
        shapes += [_text(middle, top + 25, inner, "label", "middle"), _text(middle, top + 58, lower, "note", "middle")]
        left += width
    return shapes


def _attention(left: int, top: int) -> list[str]:
    """Queries downwards, keys to the right: filled where a query attends a key."""
    sizes = {"trunk": 116, "chosen": 60, "rejected": 60}
    shapes = [_text(40, top - 44, "Who attends whom", "title")]
    y = top
    for query, height in sizes.items():
        shapes.append(_text(left - 8, y + height / 2 + 5, query, "", "end"))
        x = left
        for key, width in sizes.items():
            if y == top:
                shapes.append(_text(x + width / 2, top - 8, key, "", "middle"))
            shapes.append(_box(x, y, width - 2, height - 2, "empty"))
            if query == key:
                corners = f"{x},{y} {x},{y + height - 2} {x + width - 2},{y + height - 2}"
                shapes.append(f'<polygon class="{query}" points="{corners}"/>')
            elif key == "trunk":
                shapes.append(_box(x, y, width - 2, height - 2, query))
            x += width
        y += height
    return [*shapes, _text(40, y + 18, "rows: queries; columns: keys", "note")]


def _ranks(left: int, top: int) -> list[str]:
    """One row a rank, with the pieces of the sequence that it holds filled."""
    chunk, piece = 29, 29
    shapes = [_text(left - 60, top - 44, f"Split over {NUM_RANKS} context-parallel ranks", "title")]
    for rank in range(NUM_RANKS):
        y = top - 16 + 32 * rank
        shapes.append(_text(left - 8, y + 17, f"rank {rank}", "", "end"))
        for index in range(2 * NUM_RANKS):
            held = index in (rank, 2 * NUM_RANKS - 1 - rank)
            shapes.append(_box(left + chunk * index, y, chunk - 2, 24, "trunk" if held else "empty"))
        for index in range(NUM_RANKS):
            branch = "chosen" if index < NUM_RANKS / 2 else "rejected"
            x = left + chunk * 2 * NUM_RANKS + piece * index
            shapes.append(_box(x, y, piece - 2, 24, branch if index == rank else "empty"))
    notes = (
        "Each rank holds an early and a late chunk of the trunk,",
        "so that causal attention is equal work for all.",
        "",
        "The queries of the branches visit every rank and attend",
        "the trunk keys there; no trunk key moves for them.",
    )
    y = top + 32 * NUM_RANKS + 8
    return shapes + [_text(left - 60, y + 19 * line, note, "note") for line, note in enumerate(notes) if note]


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    main()
