"""Measured numbers and their limits."""

import math
from collections.abc import Mapping


class Measured:
    """Prints numbers with their limit, keeps them for the results, and fails where one is above."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def __call__(self, values: Mapping[str, float], limit: float | None = None) -> None:
        """Without ``limit`` the numbers are kept and nothing is asked of them."""
        for name, value in values.items():
            print(f"    {name}: {value:.3g}" + (f", limit {limit:.3g}" if limit is not None else ""))
            shown = value if math.isfinite(value) else str(value)
            self._properties.append(("measured", {"name": name, "value": shown, "limit": limit}))
        over = {name: value for name, value in values.items() if limit is not None and not value <= limit}
        assert not over, f"above {limit}: {over}"
