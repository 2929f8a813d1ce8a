"""What the errors of object stores and web servers mean: one sentence for each, and whether trying again may help."""

import errno
import re
from dataclasses import dataclass

from ondol.errors import UserError

RETRIED = (408, 425, 429, 500, 502, 503, 504)
DENIED = "access is denied: check the credentials, and what they may read"
MISSING = "it does not exist: check the address"
BROKEN = "the server fails, each time it is asked: try again later, or ask whoever runs it"
# By the names of the libraries' classes, so that none has to be installed; the first that fits counts.
SAID = (
    (("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "CredentialUnavailableError"),
     "there are no credentials: set those of the store in the environment or in .env (see docs/data.md)", False),
    (("SSLError", "ClientSSLError", "SSLCertVerificationError", "ClientConnectorCertificateError"),
     "the server's certificate does not verify: name its authority in SSL_CERT_FILE (AWS_CA_BUNDLE for s3)", False),
    (("EndpointConnectionError", "ClientConnectorError", "ServiceRequestError", "ConnectionRefusedError", "gaierror"),
     "the host cannot be reached: check the address and the network", True),
    (("TimeoutError", "ConnectTimeoutError", "ReadTimeoutError", "ServiceResponseError"),
     "the server does not answer in time: try again, or raise `timeout_seconds` under [fetch]", True),
    (("ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "IncompleteReadError", "ConnectionError",
      "HTTPClientError", "ConnectionClosedError", "ResponseStreamingError", "Cut"),
     "the connection was cut, each time it was opened: try again later", True),
    (("FileExpired",), "it changed while it was read: run the command again", False),
    (("InvalidURL",), "that is no address: write it as https://host/path", False),
    (("PermissionError", "ClientAuthenticationError", "RefreshError"), DENIED, False),
    (("FileNotFoundError", "ResourceNotFoundError"), MISSING, False),
)  # fmt: skip
BY_NUMBER = {
    errno.ENOSPC: "the disk is full: free some space under .ml",
    errno.EREMOTEIO: BROKEN,
    errno.EBUSY: BROKEN,
}


class Cut(Exception):
    """Fewer bytes came than were announced."""


@dataclass(frozen=True)
class Fault:
    """What was wrong.

    Attributes:
        said: The end of a sentence.
        passing: Whether trying again may help.
    """

    said: str
    passing: bool = False

    @property
    def brief(self) -> str:
        """What is wrong, without how often it was tried and what to do."""
        return re.split("[,:]", self.said)[0]


def explain_fault(error: BaseException) -> Fault:
    """Return what an error of fsspec or a library below it means; its text may hold secrets and is left out."""
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int):
        return _by_status(status)
    names = {kind.__name__ for kind in type(error).__mro__}
    if lacks_bucket(error):
        return Fault("its bucket does not exist: check the address")
    for known, said, passing in SAID:
        if names & set(known):
            return Fault(said, passing)
    number = getattr(error, "errno", None)
    if number in BY_NUMBER:
        return Fault(BY_NUMBER[number], BY_NUMBER[number] == BROKEN)
    return Fault(f"{type(error).__name__} was raised: check the address and the credentials")


def lacks_bucket(error: BaseException) -> bool:
    """Tell whether it is the bucket that does not exist."""
    return isinstance(error, FileNotFoundError) and "bucket" in str(error).lower()


def refuse(uri: str, error: BaseException, doing: str = "read") -> UserError:
    """Return what to tell the user of an error."""
    return UserError(f'"{uri}" cannot be {doing}: {explain_fault(error).said}.')


def _by_status(status: int) -> Fault:
    if status in (401, 403):
        return Fault(DENIED)
    if status in (404, 410):
        return Fault(MISSING)
    if status in RETRIED:
        return Fault(f"{BROKEN} (status {status})", passing=True)
    return Fault(f"the server answers with status {status}: check the address")
