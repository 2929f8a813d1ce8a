"""From a fitted scikit-learn pipeline to ONNX, and the proof that both say the same."""

from flows.compiling.convert import compile_model
from flows.compiling.parity import Parity, check_parity

__all__ = ["Parity", "check_parity", "compile_model"]
