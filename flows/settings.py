"""Typed settings: the defaults stand here, `config.toml` holds what differs, the environment overrides both.

`ML_TRAIN__SEED=7` overrides `seed` in the section `[train]`; `ML_STORE` moves the store.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from flows.errors import UserError, nearest

Problem = Literal["binary", "multiclass", "regression"]
FILE_NAME = "config.toml"


class Section(BaseModel):
    """One section of `config.toml`: frozen, and refusing unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Project(Section):
    """Who the project is."""

    name: str = Field("project", pattern=r"^[a-z0-9][a-z0-9._-]*$")


class Data(Section):
    """Where the rows come from and what is predicted."""

    source: str = "sample://"
    target: str | None = None
    problem: Problem = "binary"
    max_bad_share: float = Field(0.1, ge=0, le=1)


class Split(Section):
    """Which rows are held out: by a hash of the id (or of the row), or the latest by time."""

    by: Literal["hash", "time"] = "hash"
    holdout: float = Field(0.2, gt=0, lt=1)
    seed: int = 0


class Train(Section):
    """How the model is fitted; `params` go to `build_estimator`, `trusted_types` to skops."""

    seed: int = 0
    params: dict[str, Any] = {}
    trusted_types: tuple[str, ...] = ()


class Gates(Section):
    """What a candidate must reach to be deployed; `metric` defaults to the problem's own."""

    metric: str | None = None
    minimum: float | None = None
    margin: float = Field(0.01, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(200, ge=20)


class Deploy(Section):
    """How the model is served; `tolerance` bounds compiled against scikit-learn probabilities."""

    runtime: Literal["onnx", "sklearn"] = "onnx"
    tolerance: float = Field(1e-5, gt=0)


class Service(Section):
    """Limits and address of the service."""

    host: str = "127.0.0.1"
    port: int = Field(3000, ge=1, le=65535)
    workers: int = Field(1, ge=1)
    max_rows: int = Field(1000, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)


class Settings(BaseSettings):
    """All settings of a project; `root` is the folder that holds `config.toml`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="ML_", env_nested_delimiter="__", env_ignore_empty=True
    )

    root: Path
    store: Path = Path(".ml/store")
    project: Project = Project()
    data: Data = Data()
    split: Split = Split()
    train: Train = Train()
    gates: Gates = Gates()
    deploy: Deploy = Deploy()
    service: Service = Service()

    @field_validator("store", mode="before")
    @classmethod
    def _require_folder(cls, value: Any) -> Any:
        if "://" in str(value):
            raise ValueError("the store is a folder; object stores are not supported yet")
        return value

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
        return env_settings, init_settings

    def show(self, path: Path) -> str:
        """Return a path as it is shown: relative to the project where it lies inside."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    @property
    def home(self) -> Path:
        """The ignored folder that holds everything a run leaves behind."""
        return self.root / ".ml"

    @property
    def store_path(self) -> Path:
        """The store's folder; a relative one is relative to the project."""
        return self.root / self.store


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


def load_settings(root: Path | None = None) -> Settings:
    """Read `config.toml` of the project at `root` (default: found from here) and the environment.

    Raises:
        UserError: the file is missing or is no TOML, a key is unknown, or a value is not allowed.
    """
    folder = (root or find_root()).resolve()
    path = folder / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return Settings(**(values | {"root": folder}))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this inside a project made with `copier copy`.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
    return f'The setting "{name}" ({FILE_NAME} or environment) is {first["input"]!r}: {first["msg"]}.'


def _keys(place: list[str]) -> list[str]:
    """List the known keys of the section at `place`."""
    model: type[BaseModel] = Settings
    for part in place:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return []
        model = field.annotation
    return [key for key in model.model_fields if key != "root"]
