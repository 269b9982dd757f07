"""Hooks of mkdocs.yml, called by mkdocs.

A page may link to a file of the checkout outside docs/, which is not on the site. Such a link becomes its text and the
file's path.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take the links that leave docs/ out of a page."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def named(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        return f"{link[1]} (`{path}`)" if not path.startswith("docs/") else link[0]

    return LINK.sub(named, markdown)
