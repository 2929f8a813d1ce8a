"""From a version to what is served: ONNX, parity, bundles, smoke tests and batch predictions."""
