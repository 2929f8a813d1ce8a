"""How columns become features. Yours to edit.

The frame that arrives holds the contract's features under their real names, encoded: numbers, booleans and
dates (as days) are float32 with NaN for missing values; texts are strings, "<missing>" where there is none.
"""

from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.preprocessing import OrdinalEncoder


def build_features() -> ColumnTransformer:
    """Return the unfitted transformer: texts to numbers, everything else as it is."""
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return ColumnTransformer(
        [("texts", texts, make_column_selector(dtype_exclude="number"))],
        remainder="passthrough",
        verbose_feature_names_out=False,
    )
