"""What the site makes of a page."""

from types import SimpleNamespace

from scripts.site_hooks import on_page_markdown

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="results.md"))


def test_a_link_out_of_the_folder_becomes_a_path() -> None:
    page = "[one](../examples/x/README.md) [two](data.md#a) [three](../docs/data.md) [four](../CHANGELOG.md#unreleased)"
    shown = "one (`examples/x/README.md`) [two](data.md#a) [three](../docs/data.md) four (`CHANGELOG.md`)"
    assert on_page_markdown(page, PAGE) == shown


def test_bars_in_code_of_a_table() -> None:
    page = "a `b \\| c`\n\n| h |\n|---|\n| `all\\|none` and \\| |\n"
    assert on_page_markdown(page, PAGE) == page.replace("all\\|none", "all|none")
