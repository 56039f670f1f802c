"""One HTML page that needs no network: its style, its script and its pictures are in it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 64  # pixels of an example


@dataclass(frozen=True)
class Text:
    """A cell of a table.

    Attributes:
        text: what it says.
        bold: it is the best.
        hint: what is said of it where the pointer is, such as the value of every seed.
    """

    text: str
    bold: bool = False
    hint: str = ""


def environment(package: str, **options: Any) -> Any:
    """jinja2 for the templates of a package, with those that pages share; names are escaped."""
    import jinja2

    return jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package), jinja2.PackageLoader("ssl_selmix.common")]
        ),
        **options,
    )


def picture(image: Image) -> str:
    """A data URI: a small PNG or, of what is larger than `SIDE`, a JPEG."""
    import io

    kind = "png"
    if max(image.size) > SIDE:
        image, kind = image.copy(), "jpeg"
        image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, kind)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
