"""The bundle in production: named by `ML_BUNDLE` or by `champion.json` in `ML_STORE`, read twice a second."""

import asyncio
import json
import logging
import os
import re
import threading
import time
from pathlib import Path

from ondol_serving.bundle import Bundle, BundleError, load_bundle

POLL_SECONDS = 0.5  # and a load, so that a promotion is in production within two seconds
WAITING_SECONDS = 0.1  # as long as there is no model, so that the first is taken up at once
RETRY_SECONDS = 5.0  # after a failed load: a file may have come late, or the machine been short of memory
NOTHING = {"bundle": None}  # what `champion.json` holds where nothing is to serve
NO_MODEL = "There is no model yet: deploy one with `ml run`, and the service takes it up by itself."

log = logging.getLogger("bentoml.service")  # BentoML's own logger: it has a handler and a format


class NoBundle(FileNotFoundError):
    """`ML_BUNDLE` names a folder in which there is no bundle, or not yet. The message is one sentence."""


class NothingInProduction(Exception):
    """What is in production, if anything, is to be taken out of it."""


class Serving:
    """The bundle that answers, or None. Readers take `bundle` once and use that object throughout."""

    def __init__(self) -> None:
        """Start with nothing; `refresh` looks."""
        self.bundle: Bundle | None = None
        self._loaded: object = None
        self._tried: object = None
        self._retry_at = 0.0
        self._complaint = ""
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Load the bundle that is named now; on failure log it, keep the old one and retry later."""
        with self._lock:
            try:
                folder, digest = locate_bundle()
                named = (folder, digest, *_stamps(folder))
                if named == self._loaded:
                    self._tried, self._complaint = None, ""  # a refused one may have been named in the meantime
                    return
                if named == self._tried and time.monotonic() < self._retry_at:
                    return
                self._tried = named
                self.bundle = load_bundle(folder, digest)
                self._loaded, self._complaint = named, ""
                log.info("Serving model version %s from %s", self.bundle.version, folder)
            except NoBundle as error:
                self._wait(error)
            except FileNotFoundError:
                return
            except NothingInProduction:
                self._withdraw()
            except (BundleError, OSError, ValueError) as error:
                self._refuse(error)

    async def watch(self) -> None:
        """Refresh forever. Loading runs in a thread, so that requests are answered in the meantime."""
        while True:
            await asyncio.sleep(POLL_SECONDS if self.bundle else WAITING_SECONDS)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:
                log.exception("Looking for the champion failed")

    def forget(self) -> None:
        """Serve nothing, as at the start."""
        self.bundle, self._loaded, self._tried, self._complaint = None, None, None, ""

    def _withdraw(self) -> None:
        if self.bundle is not None:
            log.warning("Version %s is taken back, no model is in production", self.bundle.version)
        self.forget()

    def _wait(self, error: NoBundle) -> None:
        if self.bundle is None and str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("%s", error)

    def _refuse(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if str(error) == self._complaint:  # the same at every try
            return
        self._complaint = str(error)
        old = "there is none yet" if self.bundle is None else f"version {self.bundle.version} stays in production"
        log.error("Refused a bundle, %s: %s", old, error)


def locate_bundle() -> tuple[Path, str | None]:
    """Return the folder of the bundle that should serve, and its digest where that is recorded.

    Raises:
        FileNotFoundError: none is named, yet or for a moment; `NoBundle` where `ML_BUNDLE` names it.
        NothingInProduction: `champion.json` says so: a first release failed and was taken back.
        BundleError: `champion.json` cannot be understood.
    """
    if named := os.environ.get("ML_BUNDLE"):
        folder = Path(named)
        if not (folder / "meta.json").exists():
            raise NoBundle(f"ML_BUNDLE is {named}, and there is no meta.json in it: the service waits for one")
        stated = re.search("-([0-9a-f]{12})$", folder.name)  # the store's name of a bundle ends so
        return folder, stated and stated[1]
    store = Path(os.environ.get("ML_STORE") or ".ml/store")
    text = (store / "champion.json").read_text(encoding="utf-8")
    try:
        champion = json.loads(text)
        if champion == NOTHING:
            raise NothingInProduction
        return store / "bundles" / champion["bundle"], champion["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{store / 'champion.json'} cannot be understood: {error!r}") from error


def _stamps(folder: Path) -> tuple[object, ...]:
    """Return what changes when a file of the bundle does."""
    if not folder.is_dir():
        return ()
    files = sorted(folder.iterdir())
    return tuple((f.name, s.st_mtime_ns, s.st_size, s.st_ino) for f in files for s in [f.stat()])


serving = Serving()  # one for the process: BentoML makes the middleware and the service apart
