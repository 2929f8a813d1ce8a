"""The Open Inference Protocol over HTTP and gRPC, side by side in one run, by Triton's client.

    make bench BENCHMARKS=inference_protocol [ARGS="--seconds 5 --rounds 3 --clients 16 --out result.json"]

One service process with both; each client is a process of `tritonclient` that sends the same telco row. Its packages
are installed into `build/triton`, since they ask for other versions. Goal: gRPC answers at least as many requests as
HTTP.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from serving.servers import find_port, list_servers, run_server  # noqa: E402
from serving.telco import example_rows, fit_telco, read_telco, write_bundle  # noqa: E402

TRITON = HERE.parent / ".ci" / "triton"  # creates an environment with Triton's client, and prints its interpreter


def main() -> int:
    """Run the comparison; return 0 where the goal is met."""
    arguments = read_arguments()
    python = subprocess.run([TRITON], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="bench-oip-") as folder:
        work = Path(folder)
        frame = read_telco()
        write_bundle(fit_telco(frame), frame, work / "bundle")
        (work / "rows.json").write_text(json.dumps(example_rows(frame)), encoding="utf-8")
        service = next(one for one in list_servers(work) if one.name == "service")
        port = find_port()
        service.environment["ML_SERVICE__GRPC_PORT"] = str(port)
        with run_server(service, work) as running:
            address = running.url.removeprefix("http://").removesuffix("/predict")
            addresses = {"http": address, "grpc": f"127.0.0.1:{port}"}
            figures: dict[str, list[float]] = {form: [] for form in addresses}
            for turn in range(arguments.rounds):
                for form, one in addresses.items():
                    print(f"Round {turn + 1}: {form}", flush=True)
                    client = [str(HERE / "serving" / "triton_clients.py"), form, one, str(work / "rows.json")]
                    command = [python, *client, str(arguments.clients), str(arguments.seconds)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    figures[form].append(float(done.stdout))
    medians = {form: statistics.median(found) for form, found in figures.items()}
    ratio = medians["grpc"] / medians["http"]
    for form, median in medians.items():
        print(f"{form}: {median:.0f} requests a second with {arguments.clients} clients")
    print(f"gRPC answers {ratio:.2f} times the requests of HTTP (goal 1). Goal {'met' if ratio >= 1 else 'NOT met'}.")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"per_second": medians, "ratio": ratio}, indent=1), encoding="utf-8")
    return 0 if ratio >= 1 else 1


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each protocol")
    parser.add_argument("--clients", type=int, default=16, help="processes that send requests")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
