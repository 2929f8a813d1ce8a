"""How columns become features. Yours to edit.

The frame that arrives holds the contract's features under their real names, encoded: numbers, booleans, dates (as
days), durations (as seconds) and ordered categories (as ranks) are float32 with NaN for missing values. A date
whose parts come round has them behind all columns: `bought.month`, `bought.weekday` (0 is Monday), `bought.hour`. Other
texts are strings, "<missing>" where there is none: of dtype `str` where there are more than 255, else `object`.
"""

from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.model_selection import KFold
from sklearn.preprocessing import OrdinalEncoder, TargetEncoder

TARGETS = {"binary": "binary", "multiclass": "multiclass", "regression": "continuous"}


def build_features(problem: str) -> ColumnTransformer:
    """Return the unfitted transformer for `problem`: texts to numbers, everything else as it is."""
    few = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    folds = KFold(5, shuffle=True, random_state=0)  # a row's own target is not in what its text stands for
    many = TargetEncoder(target_type=TARGETS[problem], cv=folds)
    return ColumnTransformer(
        [
            ("few", few, make_column_selector(dtype_exclude=["number", "str"])),
            ("many", many, make_column_selector(dtype_include="str")),
        ],
        remainder="passthrough",
        verbose_feature_names_out=False,
    )
