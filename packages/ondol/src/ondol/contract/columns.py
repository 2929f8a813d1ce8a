"""The contract as plain data: what each column is, and how it becomes a tensor."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from ondol.errors import UserError, nearest
from ondol_serving.grammar import date_grammar

Kind = Literal["number", "integer", "boolean", "text", "date", "duration"]
Part = Literal["month", "weekday", "hour"]
Role = Literal["feature", "id", "time", "target", "group", "sensitive", "ignored"]
Label = bool | int | float | str

MISSING_TEXT = "<missing>"


class Frozen(BaseModel):
    """A value that is never changed after it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(NamedTuple):
    """One input of a model: what the features call it, its name in ONNX, and its type."""

    name: str
    key: str
    tensor: Literal["float32", "string"]


class Encoding(Frozen):
    """How a column becomes a tensor, the same in training, batch and service.

    A float32 tensor is `(x - offset) / scale`, computed in float64, NaN where missing; a date's `x` is its days
    (UTC, fractions allowed) since `origin`, a duration's its seconds, a text's its place in `order`. A string tensor
    is the text itself, `missing` where there is none; `known` lists the values seen in training, or is None where
    there were too many. A date has a further float32 input for each of `parts`: the month (1 to 12), the weekday
    (0 for Monday) or the hour, under the name by which the features know it; its key is the column's and the part.
    """

    tensor: Literal["float32", "string"]
    offset: float = 0.0
    scale: float = 1.0
    origin: str | None = None
    missing: str | None = None
    known: tuple[str, ...] | None = None
    many: bool = False  # more values than a tree can tell apart by their codes: of dtype str, not object
    order: tuple[str, ...] | None = None
    parts: dict[Part, str] | None = None


class Column(Frozen):
    """One column: its real name, kind, role, and what values it may take.

    `formats` are a date's listed ones (`[data] date_formats`), None for the default; see `ondol_serving.grammar`.
    """

    name: str
    kind: Kind
    role: Role = "feature"
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    categories: tuple[Label, ...] | None = None
    ordered: bool = False
    formats: tuple[str, ...] | None = None
    input: str | None = None
    encoding: Encoding | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of a model that it becomes, once it has an encoding: itself, then its parts."""
        if self.encoding is None or self.input is None:
            return ()
        parts = (self.encoding.parts or {}).items()
        own = Input(self.name, self.input, self.encoding.tensor)
        return (own, *(Input(name, f"{self.input}_{part}", "float32") for part, name in parts))


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
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of a model, in order: the columns, whose places stay as they are, then the parts of all."""
        made = [column.inputs for column in self.features]
        return tuple([one for inputs in made for one in inputs[:1]] + [one for inputs in made for one in inputs[1:]])

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
        """Each column's kind by its name: what a text format's columns are read as.

        Dates with a listed format that looks like ISO 8601, such as `%Y-%d-%m`, are kept as the text that they are.
        """
        return {
            c.name: "text" if c.kind == "date" and not date_grammar(c.formats).reads_iso else c.kind
            for c in self.columns
        }

    @property
    def by_name(self) -> dict[str, Column]:
        """Every column by its name."""
        return {c.name: c for c in self.columns}

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
