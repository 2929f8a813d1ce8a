"""Loads the bundles that answer: the one in production, and the challenger of a rollout; checked twice a second.

`ML_BUNDLE` names the bundle in production, or `champion.json` in `ML_STORE` does. `rollout.json` names the challenger.
"""

import asyncio
import gc
import json
import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from ondol_serving.access import Access
from ondol_serving.admission import Load
from ondol_serving.batching import Batcher
from ondol_serving.bundle import Bundle, BundleError, load_bundle
from ondol_serving.rollout import Rollout, read_steps
from ondol_serving.shadow import Shadow

POLL_SECONDS = 0.5  # together with loading, a promotion is in production within two seconds
WAITING_SECONDS = 0.1  # while there is no model, so that the first one is loaded at once
RETRY_SECONDS = 5.0  # after a failed load: a file may have arrived late, or memory was short
NOTHING = {"bundle": None}  # content of `champion.json` if nothing is in production
NO_MODEL = "There is no model yet: deploy one with `ml run`, and the service takes it up by itself."

log = logging.getLogger("bentoml.service")  # BentoML's own logger: it has a handler and a format


class NoBundle(FileNotFoundError):
    """`ML_BUNDLE` names a folder without a bundle. The message is one sentence."""


class NothingInProduction(Exception):
    """`champion.json` says that no model is in production; a loaded one must be removed."""


class Serving:
    """Holds the bundle in production and the rollout beside it, or None.

    A request reads `bundle` once and uses that object to its end.
    """

    def __init__(self) -> None:
        """Start without a bundle; `refresh` loads it."""
        self.bundle: Bundle | None = None
        self.rollout: Rollout | None = None
        self.batcher: Batcher  # of the server's event loop; `ModelService.start` sets it
        self.load: Load  # likewise
        self.shadow: Shadow  # likewise
        self.access: Access  # likewise
        self.explaining: asyncio.Semaphore  # likewise; the turn of a slow explanation
        self._loaded: object = None
        self._challenger: tuple[object, Bundle] | None = None
        self._tried: object = None
        self._retry_at = self._retry_challenger_at = 0.0
        self._complaint = self._access_complaint = self._challenger_complaint = ""
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Load the bundle in production; on failure log the error, keep the old bundle and retry later."""
        with self._lock:
            try:
                folder, digest = locate_bundle()
                named = (folder, digest, *_stamps(folder))
                if named == self._loaded:
                    self._tried, self._complaint = None, ""  # another one may have been refused in the meantime
                    return
                if named == self._tried and time.monotonic() < self._retry_at:
                    return
                self._tried = named
                tried, challenger = self._challenger or (None, None)
                self.bundle = challenger if challenger and tried == named else load_bundle(folder, digest)
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

    def look(self) -> None:
        """Read the keys, and load the bundle in production, if either has changed."""
        self._refresh_access()
        before = self.bundle, self._challenger
        self.refresh()
        self.refresh_rollout()
        if (self.bundle, self._challenger) != before:
            freeze_objects()

    def refresh_rollout(self) -> None:
        """Load the challenger of the rollout that runs; on failure log the error, and retry later."""
        with self._lock:
            try:
                record = locate_rollout()
            except FileNotFoundError:
                record = None
            except (OSError, ValueError, KeyError, TypeError) as error:
                return self._refuse_challenger(BundleError(f"rollout.json cannot be understood: {error!r}"))
            if record is None or self.bundle is None:
                self.rollout = self._challenger = None
                return
            try:
                folder, digest = record["folder"], record["digest"]
                named = (folder, digest, *_stamps(folder))
                if self._challenger is None or self._challenger[0] != named:
                    if time.monotonic() < self._retry_challenger_at:
                        return
                    self._challenger = named, load_bundle(folder, digest)
                    log.info("Trying model version %s beside version %s", record["version"], self.bundle.version)
                if self.bundle.folder.name != record["champion"]:  # that one was refused
                    self.rollout = None
                    return
                moments, shares = read_steps(record)
                self.rollout = Rollout(
                    record["id"], record["strategy"], self.bundle, self._challenger[1], moments, shares
                )
                self._challenger_complaint = ""
            except (BundleError, OSError, ValueError, KeyError, TypeError) as error:
                self._refuse_challenger(error)

    def _refuse_challenger(self, error: Exception) -> None:
        self.rollout = self._challenger = None
        self._retry_challenger_at = time.monotonic() + RETRY_SECONDS
        if str(error) != self._challenger_complaint:
            self._challenger_complaint = str(error)
            log.error("The rollout cannot begin, the champion answers alone: %s", error)

    def _refresh_access(self) -> None:
        try:
            self.access.refresh()
            self._access_complaint = ""
        except (OSError, ValueError) as error:
            if str(error) != self._access_complaint:
                self._access_complaint = str(error)
                log.error("The keys cannot be read, those that were read before stay valid: %s", error)

    async def watch(self) -> None:
        """Refresh forever. Loading runs in a thread, so that requests are answered meanwhile."""
        while True:
            await asyncio.sleep(POLL_SECONDS if self.bundle else WAITING_SECONDS)
            try:
                await asyncio.to_thread(self.look)
            except Exception:
                log.exception("Looking for the champion failed")

    def forget(self) -> None:
        """Remove the bundle, as at the start."""
        with self._lock:
            self.bundle, self._loaded, self._tried, self._complaint = None, None, None, ""
            self.rollout = self._challenger = None
            self._retry_challenger_at, self._challenger_complaint = 0.0, ""

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
        if str(error) == self._complaint:  # logged once, not at every attempt
            return
        self._complaint = str(error)
        old = "there is none yet" if self.bundle is None else f"version {self.bundle.version} stays in production"
        log.error("Refused a bundle, %s: %s", old, error)


def freeze_objects() -> None:
    """Let the garbage collector skip all objects that exist now, and free what an earlier bundle left.

    Otherwise it examines the objects of all imported modules again and again, in the middle of requests.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def locate_bundle() -> tuple[Path, str | None]:
    """Return the folder of the bundle in production, and its digest if that is recorded.

    Raises:
        FileNotFoundError: no bundle is named, yet or for a moment; `NoBundle` if `ML_BUNDLE` names it.
        NothingInProduction: `champion.json` says so: a first release failed and was rolled back.
        BundleError: `champion.json` cannot be parsed.
    """
    if named := os.environ.get("ML_BUNDLE"):
        folder = Path(named)
        if not (folder / "meta.json").exists():
            raise NoBundle(f"ML_BUNDLE is {named}, and there is no meta.json in it: the service waits for one")
        stated = re.search("-([0-9a-f]{12})$", folder.name)  # the name of a bundle in the store ends with its digest
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


def locate_rollout() -> dict[str, Any] | None:
    """Return the record of the rollout that runs, with the `folder` of its challenger; None if there is none.

    It runs as long as it has no outcome and `champion.json` has no change after its start.

    Raises:
        FileNotFoundError: a file is missing: there was no rollout yet.
        ValueError, KeyError, TypeError: a file cannot be parsed.
    """
    if os.environ.get("ML_BUNDLE"):
        return None
    store = Path(os.environ.get("ML_STORE") or ".ml/store")
    record = json.loads((store / "rollout.json").read_text(encoding="utf-8"))
    champion = json.loads((store / "champion.json").read_text(encoding="utf-8"))
    if (
        record["outcome"]
        or champion == NOTHING
        or record["move"] != f"{len(champion['history'])} {champion['bundle']} {champion['since']}"
    ):
        return None
    return {**record, "folder": store / "bundles" / record["bundle"]}


def _stamps(folder: Path) -> tuple[object, ...]:
    """Return a value that changes when a file of the bundle changes."""
    if not folder.is_dir():
        return ()
    files = sorted(folder.iterdir())
    return tuple((f.name, s.st_mtime_ns, s.st_size, s.st_ino) for f in files for s in [f.stat()])


serving = Serving()  # one for the process: BentoML creates the middleware and the service separately
