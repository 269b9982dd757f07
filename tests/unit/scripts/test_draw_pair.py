"""docs/pair.svg is what scripts/draw_pair.py draws, and it is SVG."""

from xml.etree import ElementTree

from scripts.draw_pair import PICTURE, picture


def test_the_committed_picture_is_what_the_script_draws() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture()


def test_every_text_stands_inside_the_picture() -> None:
    root = ElementTree.fromstring(picture())
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    texts = [(float(node.attrib["x"]), float(node.attrib["y"])) for node in root.findall(".//{*}text")]
    assert len(texts) > 15
    assert all(0 < x < width and 13 < y < height - 8 for x, y in texts)
