"""Typed settings: the defaults stand here, `config.toml` holds what differs, the environment overrides both.

`ML_TRAIN__SEED=7` overrides `seed` in the section `[train]`; `ML_STORE` moves the store.
"""

import codecs
import hashlib
import tomllib
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ondol.config.base import StorePlace, is_address
from ondol.config.data import Data, Fetch, Leakage, Split
from ondol.config.model import Deploy, Gates, Train
from ondol.config.operate import Alerts, Environment, Log, Monitor, Ports, Project, Retention, Retrain, Service
from ondol.config.proxies import keep_loopback_direct
from ondol.errors import UserError, nearest
from ondol.redaction import load_env_file

FILE_NAME = "config.toml"
HOME, MIRRORS = ".ml", "mirrors"  # folders of a project; `ondol.storage.reach` opens what is in the second one


class Settings(BaseSettings):
    """All settings of a project; `root` is the folder that holds `config.toml`."""

    overridable: ClassVar[bool] = True

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="ML_", env_nested_delimiter="__", env_ignore_empty=True
    )

    root: Path
    store: StorePlace = ".ml/store"
    project: Project = Project()
    data: Data = Data()
    fetch: Fetch = Fetch()
    split: Split = Split()
    leakage: Leakage = Leakage()
    train: Train = Train()
    gates: Gates = Gates()
    deploy: Deploy = Deploy()
    service: Service = Service()
    log: Log = Log()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    ports: Ports = Ports()
    alerts: Alerts = Alerts()
    retention: Retention = Retention()
    environments: dict[str, Environment] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override what `config.toml` (passed to the initialiser) says."""
        return (env_settings, init_settings) if cls.overridable else (init_settings,)

    def show(self, path: Path) -> str:
        """Return a path as it is shown: relative to the project where it lies inside."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    @property
    def home(self) -> Path:
        """The ignored folder that holds everything a run leaves behind."""
        return self.root / HOME

    @property
    def store_path(self) -> Path:
        """The store's folder, or the one that mirrors it once `ondol.storage.reach.open_store` has opened it."""
        return self.folder_of(self.store)

    def folder_of(self, store: str) -> Path:
        """Return the folder of a store, relative to the project; of an address the folder that mirrors it."""
        if not is_address(store):
            return self.root / store
        return self.home / MIRRORS / hashlib.sha256(store.rstrip("/").encode()).hexdigest()[:12]


class FileSettings(Settings):
    """Settings that the environment does not override: those of a project whose commands run in another one."""

    overridable: ClassVar[bool] = False


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (default: here) that holds `config.toml`.

    Raises:
        UserError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder
    raise UserError(f"No {FILE_NAME} in {here} or above it: run this inside a project made with `copier copy`.")


def load_settings(root: Path | None = None, kind: type[Settings] = Settings) -> Settings:
    """Read `config.toml` of the project at `root` (default: found from here) and, as `kind` has it, the environment.

    Raises:
        UserError: the file is missing or is no TOML, a key is unknown, or a value is not allowed; or `.env` cannot be
            read.
    """
    folder = (root or find_root()).resolve()
    try:
        load_env_file(folder)
    except UnicodeDecodeError:
        raise UserError(f"{folder / '.env'} is not UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise UserError(
            f"{folder / '.env'} cannot be read ({error.strerror}): make it readable for this user."
        ) from None
    keep_loopback_direct()
    path = folder / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return kind(**(values | {"root": folder}))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this inside a project made with `copier copy`.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        if path.read_bytes().startswith(codecs.BOM_UTF8):
            raise UserError(f"{path} begins with a byte order mark: save it as UTF-8 without one.") from None
        raise UserError(f"{path} is not valid TOML: {error}.") from None
    except SettingsError as error:
        raise UserError(f"A setting in the environment cannot be read: {error}.") from None
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """Say in one sentence what the first mistake in the settings is, and what would be right."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        hint = nearest(place[-1], known) or f" Known here: {', '.join(known)}."
        return f'{FILE_NAME} or the environment has the unknown setting "{name}".{hint}'
    said = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict) and "." not in name:  # what is wrong between several settings of a section
        return f"The section [{name}] ({FILE_NAME} or environment) cannot be used: {said}."
    return f'The setting "{name}" ({FILE_NAME} or environment) is {first["input"]!r}: {said}.'


def _keys(place: list[str]) -> list[str]:
    """List the known keys of the section at `place`."""
    model: Any = Settings
    for part in place:
        table = get_args(model)  # in a table of sections, such as [environments], any name is a section
        model = table[1] if table else model.model_fields[part].annotation
    return [key for key in getattr(model, "model_fields", ()) if key != "root"]
