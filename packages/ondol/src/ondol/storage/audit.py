"""Who did something and when, as every history and record keeps it."""

import getpass
from datetime import UTC, datetime


def utc_now() -> str:
    """Return the time: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat("T", "seconds")


def user_name() -> str:
    """Return who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
