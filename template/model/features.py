"""How columns become features. Yours to edit.

The frame that arrives holds the contract's features under their real names, encoded: numbers, booleans, dates (as
days), durations (as seconds) and ordered categories (as ranks) are float32 with NaN for missing values. A date
whose parts come round has them behind all columns: `bought.month`, `bought.weekday` (0 is Monday), `bought.hour`. Other
texts are strings, "<missing>" where there is none: of dtype `str` where there are more than 255, else `object`.
"""

from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

TARGETS = {"binary": "binary", "multiclass": "multiclass", "regression": "continuous"}


def build_features(problem: str, kind: str = "boosting", texts: str = "codes") -> ColumnTransformer:
    """Return the unfitted transformer for `problem` and the `kind` of the estimator.

    Trees get a number for each text, or the mean target of its rows (`texts`: "codes" or "targets"), and everything
    else as it is. A linear model gets a column for each text, and numbers of one scale without missing values.
    """
    numbers = "passthrough"
    folds = KFold(5, shuffle=True, random_state=0)  # a row's own target is not in what its text stands for
    many = TargetEncoder(target_type=TARGETS[problem], cv=folds)
    few = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1) if texts == "codes" else many
    if kind == "linear":
        few = OneHotEncoder(handle_unknown="ignore")
        numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    return ColumnTransformer(
        [
            ("few", few, make_column_selector(dtype_exclude=["number", "str"])),
            ("many", many, make_column_selector(dtype_include="str")),
        ],
        remainder=numbers,
        sparse_threshold=1 if kind == "linear" else 0,  # a column for each text takes memory, most of it zeros
        verbose_feature_names_out=False,
    )
