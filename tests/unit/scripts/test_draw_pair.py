"""docs/pair.svg is what scripts/draw_pair.py draws, and shows the split of model/layout.py."""

from xml.etree import ElementTree

from megatron_longpo.model.layout import tree_layout
from megatron_longpo.model.tree_tokens import rank_tokens
from scripts.draw_pair import NUM_RANKS, PICTURE, picture


def test_the_committed_picture_is_what_the_script_draws() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture()


def test_every_text_stands_inside_the_picture() -> None:
    root = ElementTree.fromstring(picture())
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    texts = [(float(node.attrib["x"]), float(node.attrib["y"])) for node in root.findall(".//{*}text")]
    assert len(texts) > 15
    assert all(0 < x < width and 13 < y < height - 8 for x, y in texts)


def test_the_ranks_hold_what_the_layout_gives_them() -> None:
    """A trunk of two tokens a rank and branches of one a rank: every box of a row is a token."""
    layout = tree_layout(2 * NUM_RANKS, [NUM_RANKS // 2, NUM_RANKS // 2], NUM_RANKS)
    root = ElementTree.fromstring(picture())
    boxes = [box.attrib for box in root.findall(".//{*}rect") if box.attrib["height"] == "24"]
    assert len(boxes) == NUM_RANKS * layout.length
    for rank in range(NUM_RANKS):
        row = boxes[rank * layout.length : (rank + 1) * layout.length]
        held = [place for place, box in enumerate(row) if box["class"] != "empty"]
        assert held == sorted(rank_tokens(layout, rank).tolist())
