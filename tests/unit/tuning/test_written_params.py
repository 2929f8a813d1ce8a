"""`ml tune --write`: `[train.params]` is replaced, and everything else of `config.toml` is kept."""

import tomllib

import pytest
import tomlkit

from ondol.setup.schema_file import edit_params

PARAMS = {"kind": "선형", "learning_rate": 0.05, "early_stopping": False, "max_iter": 90}


@pytest.mark.parametrize(
    "text",
    [
        "[data]\nsource = 'a'  # here\n",
        "[data]\nsource = 'a'  # here\n\n[train]\nseed = 3  # mine\n",
        "[data]\nsource = 'a'  # here\n\n[train.params]  # old\nold = 1\nkind = 'forest'\n\n[gates]\nmargin = 0.1\n",
        "train = {seed = 3, params = {old = 1}}\n[data]\nsource = 'a'  # here\n",
        "[train]\nparams.old = 1\n[data]\nsource = 'a'  # here\n",
        "[train]\nparams = {old = 1}\n\n[data]\nsource = 'a'  # here\n",
    ],
)
def test_the_params_are_replaced_and_the_rest_is_kept(text):
    edited = edit_params(tomlkit.parse(text), PARAMS)
    before, after = tomllib.loads(text), tomllib.loads(edited)
    assert after["train"].pop("params") == PARAMS
    before.setdefault("train", {}).pop("params", None)
    assert after == before
    assert "# here" in edited and ("# mine" in edited) == ("# mine" in text)
