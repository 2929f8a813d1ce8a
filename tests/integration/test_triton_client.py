"""Triton's own client, in an environment of its own since it asks for other versions, against a real service."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_server import serve
from service_support import bundle_files, compile_model, crown, fit, write_bundle

from ondol.orchestration.guard import free_port

ROOT = Path(__file__).parents[2]
CLIENT = """
import json, sys
import numpy as np

address, file, form, name, key = sys.argv[1:]
if form == "grpc":
    import tritonclient.grpc as triton
else:
    import tritonclient.http as triton
rows, binary = json.load(open(file)), {} if form == "grpc" else {"binary_data": form == "binary"}
dtypes = {"FP64": "f8", "INT64": "i8", "BOOL": "?"}
headers = {"authorization": f"Bearer {key}"}
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
as_json = {"as_json": True} if form == "grpc" else {}
metadata = client.get_model_metadata(name, headers=headers, **as_json)
inputs = []
for described in metadata["inputs"]:
    values = [row[described["name"]] for row in rows]
    if described["datatype"] == "BYTES":
        array = np.array([("" if v is None else v).encode() for v in values], dtype=object)
    else:
        array = np.array([np.nan if v is None else v for v in values], dtypes[described["datatype"]])
    one = triton.InferInput(described["name"], [len(rows)], described["datatype"])
    one.set_data_from_numpy(array, **binary)
    inputs.append(one)
outputs = [triton.InferRequestedOutput(one["name"], **binary) for one in metadata["outputs"]]
answer = client.infer(name, inputs, outputs=outputs, headers=headers)
labels = [v.decode() if isinstance(v, bytes) else v for v in answer.as_numpy("label")]
print(json.dumps({"labels": labels, "probabilities": answer.as_numpy("probabilities").astype("f8").ravel().tolist()}))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment with Triton's client."""
    return subprocess.run([ROOT / ".ci" / "triton"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def draw_rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(7)
    return [
        {
            "house age": None if random.random() < 0.2 else float(random.uniform(0, 199)),
            "class": [None, "new", "old", "처음 보는 값", "émoji 🙂"][random.integers(5)],
            "지역": ["서울", "부산"][random.integers(2)],
            "a.b/c?": int(random.integers(0, 9)),
            "매출 (원)": int(random.integers(2_999_999_900, 3_000_000_100)),
            "가입일": None if random.random() < 0.2 else f"2021-0{random.integers(1, 9)}-03T04:05:06",
            "model_config": bool(random.integers(2)),
        }
        for _ in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["binary", "json", "grpc"])
def test_triton_s_client_gets_the_numbers_of_predict(python: str, tmp_path: Path, form: str) -> None:
    from ondol.registry.keys import add_key
    from ondol.storage.store import Store

    store, rows = tmp_path / "store", draw_rows(1000)
    settings = {"max_rows": 1000, "max_body_bytes": 5_000_000}
    files = bundle_files("7", "binary", compile_model(fit("binary"), "binary"), settings=settings)
    crown(store, *write_bundle(store, files))
    key, _ = add_key(Store(store), "triton", ("predict",), None)
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    port = free_port()
    with serve(store, tmp_path / "home", ML_SERVICE__GRPC_PORT=str(port)) as client:
        headers = {"Authorization": f"Bearer {key}"}
        wanted = client.post("/predict", json={"rows": rows}, headers=headers).json()["predictions"]
        address = f"127.0.0.1:{port if form == 'grpc' else client.base_url.port}"
        command = [python, "-c", CLIENT, address, tmp_path / "rows.json", form, "model", key]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["labels"] == [one["label"] for one in wanted]
    assert found["probabilities"] == [p for one in wanted for p in one["probabilities"].values()]
