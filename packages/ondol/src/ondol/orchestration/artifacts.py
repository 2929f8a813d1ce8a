"""What a run shows in the Prefect UI: Markdown, tables and pictures."""

import base64
import re
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from ondol.markdown import plain

TABLE_ROWS = 100  # the UI is for looking; the whole stands in the store


def publish_markdown(key: str, text: str) -> None:
    """Show Markdown under `key` in the run that is going on; its first line can be read in the list of artifacts."""
    first, _, rest = text.partition("\n")
    create_markdown_artifact(rest.strip(), key=_key(key), description=first)


def publish_table(key: str, rows: list[dict[str, Any]]) -> None:
    """Show the first rows of a table under `key`; Prefect's UI reads Markdown in the cells, so texts are escaped."""
    shown = [
        {name: plain(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows[:TABLE_ROWS]
    ]
    create_table_artifact(shown, key=_key(key), description=f"{len(rows):,} rows")


def publish_image(key: str, png: bytes, description: str) -> None:
    """Show a picture under `key`; it travels within the artifact, so no file server is needed.

    As Markdown: of an artifact for images Prefect also shows the address, which here would be the whole picture.
    """
    address = "data:image/png;base64," + base64.b64encode(png).decode()
    create_markdown_artifact(f"![{description}]({address})", key=_key(key), description=description)


def publish_link(key: str, address: str, text: str) -> None:
    """Show a link under `key`."""
    create_link_artifact(link=address, link_text=text, key=_key(key), description=text)


def _key(words: str) -> str:
    """Return `words` in the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
