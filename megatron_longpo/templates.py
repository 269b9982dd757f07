"""What is written for people to read, from templates that lie beside the code as package data (Jinja).

Pages share their style, ``page.css.jinja``, and the colours of what they compare.
"""

from collections.abc import Mapping
from typing import Any

COLOURS = ("#0a6ebd", "#c2560c", "#1a8a5a", "#a33a9a", "#8a6d00", "#4b4fb5", "#b3203f", "#4f6672")
"""Of what a page compares, on white."""
COLOURS_ON_DARK = ("#5cb0f2", "#f09a55", "#4fc38d", "#dc83d4", "#d0b03c", "#9a9df0", "#f0788f", "#9fb7c4")

_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
"""Control characters may not stand in HTML: shown as their pictures."""


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """The template with ``values`` in its places; in an HTML template all of them are escaped.

    Args:
        package: where the template lies; it may include others by their path in ``megatron_longpo``.
        template: its file name; ``.html.jinja`` makes it HTML.
        values: a name that the template reads and that has no value is a ``jinja2.UndefinedError``.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined  # slow to import, few verbs need it

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("megatron_longpo", "")]),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(values)
    return text.translate(_CONTROLS) if template.endswith(".html.jinja") else text
