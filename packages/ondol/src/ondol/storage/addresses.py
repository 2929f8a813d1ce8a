"""Addresses with secrets in them, and the optional libraries that open them."""

import importlib
from types import ModuleType

from ondol.errors import UserError
from ondol.redaction import expand, find_plain


def refuse_plain(uri: str) -> None:
    """Refuse an address that holds a secret in plain text.

    Raises:
        UserError: it does; the secret is not repeated.
    """
    if what := find_plain(uri):
        raise UserError(
            f"The source's {what} stands in plain text: write ${{NAME}} in its place, and NAME=… in .env "
            "or in the environment."
        )


def resolve(uri: str) -> str:
    """Return `uri` with its secrets filled in: to connect with, never to show.

    Raises:
        UserError: one is not set.
    """
    try:
        return expand(uri)
    except KeyError as error:
        name = error.args[0]
        raise UserError(f'"{uri}" needs {name}: set it in the environment, or write {name}=… in .env.') from None


def require_library(module: str, package: str, uri: str) -> ModuleType:
    """Import the client library of an optional source.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'"{uri}" is read by {package}, which is not installed: run `uv add {package}`.') from None
