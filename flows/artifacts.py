"""What a run shows in the Prefect UI: Markdown, tables and pictures."""

import base64
import re
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

TABLE_ROWS = 100  # the UI is for looking; the whole stands in the store


def publish_markdown(key: str, text: str) -> None:
    """Show Markdown under `key` in the run that is going on."""
    create_markdown_artifact(text, key=_key(key))


def publish_table(key: str, rows: list[dict[str, Any]]) -> None:
    """Show the first rows of a table under `key`."""
    create_table_artifact(rows[:TABLE_ROWS], key=_key(key), description=f"{len(rows):,} rows")


def publish_image(key: str, png: bytes, description: str) -> None:
    """Show a picture under `key`; it travels within the artifact, so no file server is needed."""
    address = "data:image/png;base64," + base64.b64encode(png).decode()
    create_image_artifact(image_url=address, key=_key(key), description=description)


def publish_link(key: str, address: str, text: str) -> None:
    """Show a link under `key`."""
    create_link_artifact(link=address, link_text=text, key=_key(key))


def _key(words: str) -> str:
    """Return `words` in the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
