"""What is written for people to read, from templates that lie beside the code as package data (Jinja)."""

from collections.abc import Mapping
from typing import Any


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """The template with ``values`` in its places; in an HTML template all of them are escaped.

    Args:
        package: where the template lies.
        template: its file name; ``.html.jinja`` makes it HTML.
        values: a name that the template reads and that has no value is a ``jinja2.UndefinedError``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import, and few verbs write a page

    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
