"""The contract from `model/schema.py`, and rows validated with it."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pytest

from ondol.contract import (
    Column,
    Contract,
    check_rows,
    describe,
    fit_encodings,
    load_schema,
    require_columns,
    required_dtype,
    schema_digest,
    typed,
)
from ondol.contract.schema import breaking_changes, can_score, require_compatible
from ondol.errors import Refused, UserError


class Schema(pa.DataFrameModel):
    """Every kind, role and bound."""

    customer: str = pa.Field(unique=True, metadata={"role": "id"})
    when: pd.Timestamp = pa.Field(ge=pd.Timestamp("2020-01-01"), metadata={"role": "time"})
    age: pd.Int64Dtype = pa.Field(nullable=True, ge=0, le=120)
    fee: float = pa.Field(gt=0, lt=1000, nullable=True)
    score: float = pa.Field(in_range={"min_value": 0, "max_value": 1, "include_max": False})
    plan: str = pa.Field(isin=["basic", "플러스"], alias="요금제 (class)")
    ok: bool = pa.Field()
    maybe: pd.BooleanDtype = pa.Field(nullable=True)
    gender: str = pa.Field(nullable=True, metadata={"role": "sensitive"})
    note: str = pa.Field(nullable=True, metadata={"role": "ignored"})
    household: int = pa.Field(metadata={"role": "group"})
    churned: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})
    spend: float = pa.Field(metadata={"role": "target"})

    class Config:
        coerce = True
        strict = False
        metadata = None


def make(**fields: Any) -> type[pa.DataFrameModel]:
    """Return a schema of `name=(type, field)`."""
    body = {name: field for name, (_, field) in fields.items()}
    return type("Made", (pa.DataFrameModel,), body | {"__annotations__": {n: kind for n, (kind, _) in fields.items()}})


def contract(target: str = "churned", problem: str = "binary") -> Contract:
    return describe(Schema, target, problem)


def table(rows: int = 5, **changed: list[Any]) -> pyarrow.Table:
    values: dict[str, Any] = {
        "customer": [f"c{i}" for i in range(rows)],
        "when": pd.date_range("2024-01-01", periods=rows),
        "age": [30] * rows,
        "fee": [9.5] * rows,
        "score": [0.5] * rows,
        "요금제 (class)": ["basic"] * rows,
        "ok": [True] * rows,
        "maybe": [True] * rows,
        "gender": ["f"] * rows,
        "household": [1] * rows,
        "churned": ["no"] * rows,
        "spend": [1.0] * rows,
    }
    return pyarrow.table(values | changed)


def reasons(rows: pyarrow.Table, schema: Any = Schema) -> list[tuple[int, str, str, Any]]:
    made = describe(schema, "churned", "binary")
    checked = check_rows(rows, made.used, schema.to_schema())
    found = checked.reasons.astype({"value": object})
    return [tuple(row) for row in found.where(found.notna(), None).itertuples(index=False, name=None)]


# What the schema says.


def test_kinds_come_from_annotations_and_names_from_aliases():
    kinds = {c.name: c.kind for c in contract().columns}
    assert kinds == {
        "customer": "text",
        "when": "date",
        "age": "integer",
        "fee": "number",
        "score": "number",
        "요금제 (class)": "text",
        "ok": "boolean",
        "maybe": "boolean",
        "gender": "text",
        "note": "text",
        "household": "integer",
        "churned": "text",
        "spend": "number",
    }


def test_features_are_feature_and_sensitive_columns_in_order():
    names = [c.name for c in contract().features]
    assert names == ["age", "fee", "score", "요금제 (class)", "ok", "maybe", "gender"]


def test_every_role_is_found():
    made = contract()
    found = {role: made.role(role) for role in ("id", "time", "group", "sensitive", "ignored", "target")}
    assert [c.name for c in found.values() if c] == ["customer", "when", "household", "gender", "note", "churned"]
    assert made.model_copy(update={"columns": made.features}).role("id") is None


def test_the_other_targets_are_ignored():
    made = contract("spend", "regression")
    assert made.target_column.name == "spend"
    assert made.column("churned").role == "ignored"
    assert "churned" not in [c.name for c in made.used]


def test_bounds_are_what_the_checks_say():
    made = contract()
    age, fee, score = made.column("age"), made.column("fee"), made.column("score")
    assert (age.minimum, age.maximum, age.exclusive_minimum, age.exclusive_maximum) == (0, 120, None, None)
    assert (fee.minimum, fee.maximum, fee.exclusive_minimum, fee.exclusive_maximum) == (None, None, 0, 1000)
    assert (score.minimum, score.maximum, score.exclusive_maximum) == (0, None, 1)
    assert made.column("when").minimum == pd.Timestamp("2020-01-01").timestamp()
    assert made.column("요금제 (class)").categories == ("basic", "플러스")
    assert made.column("gender").categories is None


def test_nullability_is_what_the_field_says():
    assert [c.name for c in contract().columns if c.nullable] == ["age", "fee", "maybe", "gender", "note"]


def test_a_gap_in_integers_and_booleans_takes_a_dtype_that_has_gaps():
    made = contract()
    dtypes = [required_dtype(made.column(name)) for name in ("age", "household", "maybe", "ok", "when", "customer")]
    assert dtypes == ["Int64", "int64", "boolean", "bool", "datetime64[us]", "str"]


def test_one_target_needs_no_naming_and_several_do():
    one = make(x=(float, pa.Field()), y=(float, pa.Field(metadata={"role": "target"})))
    assert describe(one, None, "regression").target == "y"
    with pytest.raises(UserError, match=r"has 2 targets \['churned', 'spend'\]: name one in config\.toml"):
        describe(Schema, None, "binary")


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown target": (lambda: describe(Schema, "churn", "binary"), 'no such column.* Did you mean "churned"'),
    "target without role": (lambda: describe(Schema, "age", "binary"), '"age".*give it metadata'),
    "unknown role": (
        lambda: describe(make(x=(float, pa.Field(metadata={"role": "lable"}))), None, "binary"),
        'Column "x" in model/schema.py has the role "lable": allowed are feature, id',
    ),
    "unknown type": (
        lambda: describe(make(x=(complex, pa.Field())), None, "binary"),
        'Column "x" in model/schema.py has the type complex128: use float',
    ),
    "unknown column": (lambda: contract().column("ages"), 'no column "ages". Did you mean "age"'),
    "missing column": (
        lambda: require_columns(["Age", "fee"], contract().features),
        'no column "age", which the contract asks for. Did you mean "Age"',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_sentence(mistake):
    call, said = MISTAKES[mistake]
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Other: ...", "no class named Schema"),
        ("import nothing_here", "cannot be imported: ModuleNotFoundError"),
        ("class Schema(", "SyntaxError"),
    ],
)
def test_a_schema_that_cannot_be_read_is_reported(code, said, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").touch()
    (tmp_path / "model" / "schema.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("model", "model.schema"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=said):
        load_schema()
    for name in ("model", "model.schema"):
        sys.modules.pop(name, None)


def test_the_contract_survives_json():
    frame = typed(check_rows(table(), contract().used, Schema.to_schema()).valid(), contract().used)
    for made in (contract(), fit_encodings(contract(), frame)):
        again = Contract.model_validate_json(made.model_dump_json())
        assert again == made
        assert schema_digest(again) == schema_digest(made)
    assert Contract.model_validate_json(made.model_dump_json()).classes == ("no",)


@pytest.mark.parametrize("classes", [(False, True), (0, 1), ("0", "1"), (0.5, 1.5), (1, 2, 3)])
def test_classes_keep_their_type_through_json(classes):
    made = contract().model_copy(update={"classes": classes})
    again = Contract.model_validate_json(made.model_dump_json()).classes
    assert again is not None
    assert [(c, type(c)) for c in again] == [(c, type(c)) for c in classes]


# Rows validated with it.


def test_good_rows_have_no_reasons_and_the_contracts_dtypes():
    checked = check_rows(table(), contract().used, Schema.to_schema())
    assert len(checked.bad) == 0
    valid = checked.valid()
    assert {name: str(dtype) for name, dtype in valid.dtypes.items()} == {
        c.name: required_dtype(c) for c in contract().used
    }


def test_every_reason_of_a_row_is_kept():
    found = reasons(table(2, age=[-1, 3], fee=[0.0, 1.0], score=[1.0, 0.0], **{"요금제 (class)": ["gold", "플러스"]}))
    assert [row[:2] for row in found] == [(0, "age"), (0, "fee"), (0, "score"), (0, "요금제 (class)")]
    assert all(row[2] for row in found)


@pytest.mark.parametrize(
    ("column", "values", "check"),
    [
        ("score", [0.5, None], "not_nullable"),
        ("요금제 (class)", ["basic", ""], "not_nullable"),
        ("요금제 (class)", ["basic", "  \t "], "not_nullable"),
        ("ok", [True, None], "not_nullable"),
        ("household", [1, None], "not_nullable"),
        ("when", ["2024-01-01", None], "not_nullable"),
        ("when", ["2024-01-01", "someday"], "not a date"),
        ("fee", ["1", "much"], "not a finite number"),
        ("fee", [1.0, np.inf], "not a finite number"),
        ("age", ["1", "1.5"], "not a whole number"),
        ("ok", ["true", "maybe"], "not true or false"),
        ("gender", [["a"], ["b"]], "not a text"),
        ("age", [1, 121], "less_than_or_equal_to(120)"),
        ("churned", ["no", "NO"], "isin(['no', 'yes'])"),
    ],
)
def test_what_a_cell_breaks_is_named(column, values, check):
    found = reasons(table(2, **{column: values}))
    assert (found[-1][0], found[-1][1], found[-1][2]) == (1, column, check)


def test_an_unreadable_cell_has_that_reason_alone_and_its_raw_value():
    """Not also the reason of a missing value, although an unreadable cell is missing afterwards."""
    assert reasons(table(2, score=["0.5", "half"])) == [(1, "score", "not a finite number", "half")]


def test_a_date_before_the_contracts_first_is_bad():
    found = reasons(table(2, when=pd.to_datetime(["2019-12-31", "2020-01-01"])))
    assert [row[:2] for row in found] == [(0, "when")]


class WithChecks(Schema):
    """With checks of the owner's own."""

    @pa.check("fee", name="whole won")
    def fee_is_whole(cls, values: pd.Series) -> pd.Series:  # type: ignore[type-arg]
        return values % 1 == 0

    @pa.dataframe_check(name="adults pay")
    def adults_pay(cls, frame: pd.DataFrame) -> pd.Series:  # type: ignore[type-arg]
        return (frame["age"] < 18) | (frame["fee"] > 10)


def test_an_owners_own_checks_are_held():
    found = reasons(table(3, fee=[9.5, 20.0, 5.0], age=[30, 40, 7]), WithChecks)
    assert {(row[0], row[2]) for row in found} == {(0, "whole won"), (0, "adults pay")}


def test_a_check_that_fails_as_a_whole_is_reported_in_one_sentence():
    class Aggregate(Schema):
        @pa.check("fee", name="mean")
        def mean_is_small(cls, values: pd.Series) -> bool:  # type: ignore[type-arg]
            return bool(values.mean() < 1)

    with pytest.raises(UserError, match=r'The check mean of "fee" in model/schema\.py failed as a whole'):
        reasons(table(2), Aggregate)


def test_without_a_schema_the_columns_say_what_is_checked():
    rows = table(
        4, age=[-1, None, 3, 4], fee=[1.0, 0.0, 2.0, 3.0], **{"요금제 (class)": ["basic", "basic", "gold", "플러스"]}
    )
    checked = check_rows(rows, contract().features)
    assert checked.bad.tolist() == [0, 1, 2]
    dates = check_rows(table(2, when=pd.to_datetime(["2019-12-31", "2020-01-01"])), [contract().column("when")])
    assert dates.bad.tolist() == [0]


def test_valid_rows_keep_their_numbers():
    checked = check_rows(table(4, age=[1, -1, 2, -2]), contract().used, Schema.to_schema())
    assert checked.valid().index.tolist() == [0, 2]


def test_checking_twice_gives_the_same():
    """Pandera caches a model's schema: nothing may be left in it."""
    rows = table(3, age=[-1, 1, 1])
    assert reasons(rows) == reasons(rows)
    assert Schema.to_schema().columns["age"].dtype is not None


# What breaks callers.


def changed(name: str, **update: Any) -> Contract:
    made = contract()
    return made.model_copy(
        update={"columns": tuple(c.model_copy(update=update) if c.name == name else c for c in made.columns)}
    )


def test_callers_are_broken_by_what_is_gone_retyped_or_newly_required():
    old = contract()
    assert breaking_changes(old, old) == []
    assert breaking_changes(old, changed("age", role="ignored")) == ['the field "age" is gone']
    assert breaking_changes(old, changed("age", kind="text")) == ['"age" was integer and is text']
    assert breaking_changes(old, changed("age", nullable=False)) == ['"age" is now required']
    assert breaking_changes(changed("age", role="ignored"), old) == []
    assert breaking_changes(changed("fee", nullable=False), old) == []
    assert len(breaking_changes(old, contract("spend", "regression"))) == 1


def test_what_breaks_callers_is_one_sentence_that_names_the_first_changes():
    with pytest.raises(Refused) as refused:
        require_compatible(contract(), changed("age", role="ignored"), "1", "2", "type `ml deploy 2 --breaking`")
    assert str(refused.value) == (
        'Version 2 would break callers of version 1 (the field "age" is gone): inform them, then type '
        "`ml deploy 2 --breaking`."
    )
    bare = contract().model_copy(update={"columns": (contract().target_column,)})
    gone = len(breaking_changes(contract(), bare))
    with pytest.raises(Refused, match=rf"is gone; {gone - 3} more\): inform them, then add --breaking\.$"):
        require_compatible(contract(), bare, "1", "2", "add --breaking")


def test_an_old_model_scores_new_rows_only_where_its_columns_are_there():
    assert can_score(contract(), contract()) is None
    assert "no longer" in str(can_score(contract(), changed("fee", kind="text")))
    assert "it predicts" in str(can_score(contract("spend", "regression"), contract()))


def test_a_column_is_never_changed_after_it_is_made():
    with pytest.raises(ValueError, match="frozen"):
        Column(name="x", kind="number").name = "y"  # type: ignore[misc]
