"""What goes wrong with a page of an API, in words."""

import requests
import urllib3.exceptions

from ondol.config.data import Fetch

REFUSED = (401, 403, 407)


class Trouble(Exception):
    """The rest of a sentence that begins with the page: `Page 3 of "…" ` and what is wrong with it and what to do."""


def check_status(response: requests.Response, retries: int) -> None:
    """Refuse an answer that is no page.

    Raises:
        Trouble: naming the status.
    """
    status = response.status_code
    if 200 <= status < 300:
        return
    if status in REFUSED:
        raise Trouble(f"is refused ({status}): check its header=… and that the secret in it is right and still valid.")
    if status in (404, 410):
        raise Trouble(f"is not there ({status}): check the address.")
    if status == 429:
        raise Trouble(f"is held back by a rate limit (429) after {retries} retries: run this again later.")
    if status >= 500:
        raise Trouble(f"is answered with an error of the server ({status}) after {retries} retries: try again later.")
    raise Trouble(f"is answered with {status} ({response.reason}): check the address and its parameters.")


def explain(error: Exception, fetch: Fetch) -> str:
    """Return what a failure of the connection means and what to do."""
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    inner = getattr(cause, "reason", cause)
    reason = inner if isinstance(inner, Exception) else error
    if isinstance(error, requests.exceptions.SSLError) or isinstance(reason, urllib3.exceptions.SSLError):
        return (
            f"has a certificate that does not verify ({_name_certificate(reason)}): correct it, or name the "
            "file of its authority in REQUESTS_CA_BUNDLE."
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return "cannot be reached through the proxy: check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return "cannot be reached, no host has that name: check the address."
    if isinstance(reason, urllib3.exceptions.NewConnectionError):  # urllib3 counts it as a timeout
        return "cannot be reached, nobody answers there: check the address, and that the server runs."
    if isinstance(error, requests.Timeout) or isinstance(reason, urllib3.exceptions.TimeoutError):
        return (
            f"did not come within {fetch.timeout_seconds:g} seconds after {fetch.retries} retries: try again later, "
            "ask for smaller pages, or raise `[fetch] timeout_seconds`."
        )
    if isinstance(error, requests.TooManyRedirects):
        return "is redirected in a circle: check the address."
    if isinstance(error, UnicodeError | requests.exceptions.InvalidHeader):
        return "cannot be asked for, a header holds a letter that headers cannot: check header=… and its secret."
    if isinstance(error, requests.exceptions.InvalidURL):
        return "cannot be asked for, the address is none: check it."
    return f"breaks off ({type(reason).__name__}) after {fetch.retries} retries: try again later."


def _name_certificate(reason: object) -> str:
    found = str(reason).partition("certificate verify failed: ")[2]
    return found.partition(" (_ssl")[0] or "TLS failed"
