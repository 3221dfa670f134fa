# SPDX-License-Identifier: Apache-2.0
"""Filling in the templates of pages; what is not defined is an error, and all text is escaped."""

from pathlib import Path
from typing import Any


def render(template: str, /, **values: Any) -> str:
    """Return the ``template`` of this folder with ``values`` filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
