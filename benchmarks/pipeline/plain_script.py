"""The comparison: a typical hand-written script for the same model."""

import sys

import pandas as pd
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

TARGET = "churned"
NOT_FEATURES = ["customer_id", "next_plan", "next_spend"]
SEED = 0


def read(path: str) -> tuple[pd.DataFrame, pd.Series]:
    """Return the features and the target (1 for "yes")."""
    frame = pd.read_csv(path, parse_dates=["signup_month"])
    frame = frame.drop_duplicates("customer_id")
    target = (frame.pop(TARGET) == "yes").astype(int)
    frame = frame.drop(columns=NOT_FEATURES)
    origin = frame["signup_month"].min()
    frame["signup_month"] = (frame["signup_month"] - origin) / pd.Timedelta(days=1)
    frame["autopay"] = frame["autopay"].astype(float)
    return frame, target


def build() -> Pipeline:
    """Return the unfitted model: the same features, estimator and seed as the template's."""
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    features = ColumnTransformer(
        [("texts", texts, make_column_selector(dtype_exclude="number"))],
        remainder="passthrough",
        verbose_feature_names_out=False,
    )
    estimator = HistGradientBoostingClassifier(
        random_state=SEED, learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=10
    )
    return Pipeline([("features", features), ("estimator", estimator)])


def main(path: str) -> None:
    """Read, split, fit and score."""
    features, target = read(path)
    train_x, test_x, train_y, test_y = train_test_split(features, target, test_size=0.2, random_state=SEED)
    model = build().fit(train_x, train_y)
    probability = model.predict_proba(test_x)[:, 1]
    print(f"roc_auc {roc_auc_score(test_y, probability):.4f}")
    print(f"average_precision {average_precision_score(test_y, probability):.4f}")
    print(f"log_loss {log_loss(test_y, probability):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
