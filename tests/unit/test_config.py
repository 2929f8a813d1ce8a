"""What the settings refuse: names that do not exist, also by their case, and numbers that are not finite."""

import pytest

from ondol.config import load_settings
from ondol.errors import UserError
from ondol_serving.settings import read_limits

UNKNOWN = {
    '[Data]\ntarget = "y"': '"Data". Did you mean "data"?',
    '[data]\ntarget = "x"\n[Data]\ntarget = "y"': '"Data". Did you mean "data"?',
    "[GATES]\nminimum = 0.9": '"GATES". Did you mean "gates"?',
    'Store = "s3://bucket"': '"Store". Did you mean "store"?',
    '[data]\nTarget = "y"': '"data.Target". Did you mean "target"?',
    'root = "/elsewhere"': '"root".',
    '[environments.staging]\nURL = "http://x"\nstore = "s"\nurl = "http://x"': '"environments.staging.URL". Did you',
}
FLOATS = ["gates.minimum", "gates.margin", "fetch.timeout_seconds", "data.lateness", "alerts.repeat_hours"]


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_name_that_is_not_a_setting_is_refused_with_the_one_that_is_meant(tmp_path, text):
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_settings(tmp_path)
    assert f"config.toml or the environment has the unknown setting {UNKNOWN[text]}" in str(refused.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", FLOATS)
def test_a_number_that_is_not_finite_is_refused(tmp_path, monkeypatch, name, value):
    path = tmp_path / "config.toml"
    path.write_text(f"{name} = {value}", encoding="utf-8")
    said = rf'^The setting "{name}" \(config\.toml or environment\) is {value}: Input should be a finite number\.$'
    with pytest.raises(UserError, match=said):
        load_settings(tmp_path)
    path.write_text("", encoding="utf-8")
    monkeypatch.setenv(f"ML_{name.upper().replace('.', '__')}", value)
    with pytest.raises(UserError, match="finite number"):
        load_settings(tmp_path)


def test_the_service_refuses_a_number_that_is_not_finite(monkeypatch):
    monkeypatch.setenv("ML_SERVICE__BODY_SECONDS", "inf")
    with pytest.raises(ValueError, match=r"ML_SERVICE__BODY_SECONDS is 'inf': Input should be a finite number"):
        read_limits({})


def test_parameters_of_the_estimator_may_be_infinite(tmp_path):
    """As `C` of a logistic regression without a penalty."""
    (tmp_path / "config.toml").write_text("[train.params]\nC = inf", encoding="utf-8")
    assert load_settings(tmp_path).train.params == {"C": float("inf")}
