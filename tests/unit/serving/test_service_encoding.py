"""The service encodes as training does, and hashes a bundle as the store does."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ondol.contract import fit_encodings
from ondol.contract.encoding import encode
from ondol.contract.schema import Column, Contract
from ondol.storage.store import Store

COLUMNS = (
    Column(name="won amount", kind="integer", nullable=True),
    Column(name="epoch", kind="integer"),
    Column(name="share", kind="number", nullable=True),
    Column(name="가입일", kind="date", nullable=True),
    Column(name="is ok", kind="boolean"),
    Column(name="class", kind="text", nullable=True),
    Column(name="target", kind="number", role="target"),
)


def make_frame(rows: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    missing = random.random(rows) < 0.2
    days = pd.Timestamp("2021-05-06") + pd.to_timedelta(random.integers(0, 10**8, rows), unit="s")
    won = pd.Series(random.integers(0, 10**9, rows) * 10 + 3_000_000_000).astype("Int64")
    return pd.DataFrame(
        {
            "won amount": won.mask(missing),
            "epoch": random.integers(1_600_000_000, 1_700_000_000, rows),
            "share": np.where(missing, np.nan, random.random(rows)),
            "가입일": pd.Series(days).mask(missing),
            "is ok": random.random(rows) < 0.5,
            "class": pd.Series(random.choice(["가", "나", "b c"], rows)).mask(missing),
            "target": random.random(rows),
        }
    )


def as_json(value: Any) -> Any:
    if value is pd.NaT or value is pd.NA or value is None or value != value:
        return None
    return value.isoformat() if isinstance(value, pd.Timestamp) else getattr(value, "item", lambda: value)()


def test_service_encodes_every_kind_of_column_to_the_same_bits_as_training() -> None:
    import json

    from ondol_serving.contract import Encoder, read_contract
    from ondol_serving.request import compile_request

    frame = make_frame(300)
    contract = fit_encodings(Contract(problem="regression", target="target", columns=COLUMNS), frame)
    expected = encode(contract, frame)
    read = read_contract(json.loads(contract.model_dump_json()))
    names = [c.name for c in read.features]
    rows = [{n: as_json(r[n]) for n in names} for r in frame.to_dict("records")]
    request: Any = compile_request(read, 1000).model_validate_json(json.dumps({"rows": rows}))
    tensors = Encoder(read.features).encode([tuple(r.__dict__.values()) for r in request.rows])
    for column in read.features:
        tensor = tensors[str(column.input)]
        assert tensor.shape == (300, 1)
        np.testing.assert_array_equal(tensor[:, 0], expected[column.name].to_numpy(), err_msg=column.name)


def test_service_hashes_a_bundle_as_the_store_does(tmp_path: Path) -> None:
    from ondol.registry.bundles import write_bundle
    from ondol_serving.names import digest_folder

    bundle = write_bundle(Store(tmp_path), "1", {"b.json": b"{}", "a.onnx": b"\x00", "meta.json": b"1"})
    assert digest_folder(bundle.path) == bundle.digest
