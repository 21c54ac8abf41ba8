"""What all pages share: one offline HTML file from a template, this package's look and its filters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.pages.charts import signed

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent


def render_page(template: Path, context: Mapping[str, Any]) -> str:
    """A page as HTML.

    Args:
        template: extends `page.html.j2`, which lies beside this file.
        context: what it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["signed"], environment.filters["fixed"] = signed, _fixed
    return environment.get_template(template.name).render(context)


def _fixed(value: float | None, digits: int = 2) -> str:
    """A number with a set count of decimals, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def as_markup(drawing: str) -> Markup:
    """A drawing that is put into the page as it is: charts escape every word they are given."""
    from markupsafe import Markup

    return Markup(drawing)


def inline_json(data: Any) -> Markup:
    """Data for the page's script, as JSON that cannot end the script element it stands in."""
    return as_markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and short values; of a path only the last part."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            short = len(value) <= 12 and not any(isinstance(v, Mapping | list) for v in value)
            yield name, ", ".join(map(_plain, value)) if short else f"{len(value)} entries"
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    text = "–" if value is None else str(value)
    return Path(text).name if text.startswith("/") else text
