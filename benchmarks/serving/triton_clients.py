"""Processes of Triton's client that send the same request as fast as they can; prints the requests a second.

It runs in the environment of `bench_inference_protocol.py`: triton_clients.py FORM ADDRESS ROWS CLIENTS SECONDS
"""

import json
import multiprocessing
import sys
import time
from pathlib import Path


def send(form: str, address: str, rows: list[dict[str, object]], seconds: float) -> float:
    """Send requests for some seconds and return how many a second were answered."""
    import numpy as np

    if form == "grpc":
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton
    client = triton.InferenceServerClient(address)
    metadata = client.get_model_metadata("model", **({"as_json": True} if form == "grpc" else {}))
    dtypes = {"FP64": "f8", "INT64": "i8", "BOOL": "?"}
    inputs = []
    for described in metadata["inputs"]:
        values = [row[described["name"]] for row in rows]
        if described["datatype"] == "BYTES":
            array = np.array([str(value or "").encode() for value in values], dtype=object)
        else:
            array = np.array([np.nan if v is None else v for v in values], dtypes[described["datatype"]])
        one = triton.InferInput(described["name"], [len(rows)], described["datatype"])
        one.set_data_from_numpy(array)
        inputs.append(one)
    client.infer("model", inputs)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        client.infer("model", inputs)
        count += 1
    return count / passed


if __name__ == "__main__":
    form, address, file, clients, seconds = sys.argv[1:]
    sent = json.loads(Path(file).read_text(encoding="utf-8"))
    with multiprocessing.get_context("spawn").Pool(int(clients)) as pool:
        jobs = [(form, address, sent, float(seconds))] * int(clients)
        print(sum(pool.starmap(send, jobs, chunksize=1)))
