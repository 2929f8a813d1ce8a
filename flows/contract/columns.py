"""The contract as plain data: what each column is, and how it becomes a tensor."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from flows.errors import UserError, nearest

Kind = Literal["number", "integer", "boolean", "text", "date"]
Role = Literal["feature", "id", "time", "target", "group", "sensitive", "ignored"]
Label = bool | int | float | str

MISSING_TEXT = "<missing>"


class Frozen(BaseModel):
    """A value that is never changed after it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoding(Frozen):
    """How a column becomes a tensor, the same in training, batch and service.

    A float32 tensor is `(x - offset) / scale`, computed in float64, NaN where missing; a date's `x` is its days
    (UTC, fractions allowed) since `origin`. A string tensor is the text itself, `missing` where there is none;
    `known` lists the values seen in training, or is None where there were too many.
    """

    tensor: Literal["float32", "string"]
    offset: float = 0.0
    scale: float = 1.0
    origin: str | None = None
    missing: str | None = None
    known: tuple[str, ...] | None = None


class Column(Frozen):
    """One column: its real name, kind, role, and what values it may take."""

    name: str
    kind: Kind
    role: Role = "feature"
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    categories: tuple[Label, ...] | None = None
    input: str | None = None
    encoding: Encoding | None = None


class Contract(Frozen):
    """All columns of the data, which one is predicted, and the classes it has (None for regression)."""

    format: Literal[1] = 1
    problem: Literal["binary", "multiclass", "regression"]
    target: str
    classes: tuple[Label, ...] | None = None
    columns: tuple[Column, ...]

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns a model sees, in the order of its inputs."""
        return tuple(c for c in self.columns if c.role in ("feature", "sensitive"))

    @property
    def target_column(self) -> Column:
        """The column that is predicted."""
        return self.column(self.target)

    @property
    def used(self) -> tuple[Column, ...]:
        """Every column that a run reads: all but the ignored ones."""
        return tuple(c for c in self.columns if c.role != "ignored")

    @property
    def kinds(self) -> dict[str, str]:
        """Each column's kind by its name: what a text format's columns are read as."""
        return {c.name: c.kind for c in self.columns}

    def column(self, name: str) -> Column:
        """Return the column called `name`.

        Raises:
            UserError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UserError(f'The contract has no column "{name}".{nearest(name, [c.name for c in self.columns])}')

    def role(self, role: Role) -> Column | None:
        """Return the first column with `role`, or None."""
        return next((c for c in self.columns if c.role == role), None)
