"""The data's contract: derived from `model/schema.py`, carried to the service as `contract.json`."""

from flows.contract.columns import Column, Contract, Encoding
from flows.contract.encoding import encode, fit_encodings
from flows.contract.schema import describe, load_contract, load_schema, required_dtype, schema_digest

__all__ = [
    "Column",
    "Contract",
    "Encoding",
    "describe",
    "encode",
    "fit_encodings",
    "load_contract",
    "load_schema",
    "required_dtype",
    "schema_digest",
]
