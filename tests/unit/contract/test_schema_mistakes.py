"""An error in `model/schema.py` is one sentence that names the file."""

import sys
from types import ModuleType

import pandera.pandas as pa
import pytest

from ondol.contract import describe
from ondol.contract.schema import load_schema
from ondol.errors import UserError


class Unannotated(pa.DataFrameModel):
    """A field without its type."""

    age = pa.Field(ge=0)


class Misspelt(pa.DataFrameModel):
    """A check of a field that is not there."""

    age: int = pa.Field()

    @pa.check("agee")
    def positive(cls, values):
        return values > 0


@pytest.mark.parametrize(("schema", "named"), [(Unannotated, "age"), (Misspelt, "agee")])
def test_a_class_that_pandera_refuses(schema, named):
    with pytest.raises(UserError, match=f"^Schema in model/schema.py cannot be read: SchemaInitError: .*{named}"):
        describe(schema, "age", "regression")


def test_what_is_not_a_class_of_pandera(monkeypatch):
    module = ModuleType("model.schema")
    module.Schema = pa.DataFrameSchema({})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model.schema", module)
    with pytest.raises(
        UserError, match=r"^Schema in model/schema.py is not a pandera.pandas.DataFrameModel: inherit it\.$"
    ):
        load_schema()
