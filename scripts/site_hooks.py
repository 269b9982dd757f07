"""Hooks of mkdocs.yml, called by mkdocs.

A page may link to a file of the checkout outside docs/, which is not on the site. Such a link becomes its text and the
file's path. And a code host wants a bar escaped in the code of a table, where Python-Markdown would show the backslash.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


TABLE_ROW, CODE = re.compile(r"^\|.*$", re.MULTILINE), re.compile(r"`[^`]*`")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as Python-Markdown is to read it."""
    return TABLE_ROW.sub(_with_bars, _without_outer_links(markdown, page.file.src_uri))


def _with_bars(row: re.Match[str]) -> str:
    return CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])


def _without_outer_links(markdown: str, page: str) -> str:
    folder = posixpath.join("docs", posixpath.dirname(page))

    def named(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        return f"{link[1]} (`{path}`)" if not path.startswith("docs/") else link[0]

    return LINK.sub(named, markdown)
