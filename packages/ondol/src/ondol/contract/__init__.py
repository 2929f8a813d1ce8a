"""The data's contract: derived from `model/schema.py`, copied into the bundle as `contract.json`.

All later steps use it: `schema` reads the contract, `checking` converts values to its types and finds invalid rows,
and `encoding` fits and applies the encodings of the model's inputs.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.contract.checking import Checked, check_rows, clean, typed
    from ondol.contract.encoding import encode, encode_target, fit_encodings
    from ondol.contract.schema import (
        Checks,
        Column,
        Contract,
        Encoding,
        describe,
        load_checks,
        load_contract,
        load_schema,
        require_columns,
        require_known,
        require_known_markers,
        required_dtype,
        reserved_names,
        schema_digest,
    )
else:
    __getattr__ = export(__name__)

__all__ = [
    "Checked",
    "Checks",
    "Column",
    "Contract",
    "Encoding",
    "check_rows",
    "clean",
    "describe",
    "encode",
    "encode_target",
    "fit_encodings",
    "load_checks",
    "load_contract",
    "load_schema",
    "require_columns",
    "require_known",
    "require_known_markers",
    "required_dtype",
    "reserved_names",
    "schema_digest",
    "typed",
]
