"""The servers that `bench_serving.py` compares."""
