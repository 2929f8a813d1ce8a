"""The sample that every project begins with has no leak, whichever of its targets is predicted."""

import pyarrow as pa
import pytest
from leaks_support import search

from ondol.ingestion.sources import Reading, open_source

TARGETS = {"churned": "binary", "next_plan": "multiclass", "next_spend": "regression"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_claimed_of_the_sample(target):
    source = open_source("sample://?rows=3000", Reading())
    frame = pa.Table.from_batches(list(source.batches())).to_pandas()
    frame = frame.drop(columns=[name for name in TARGETS if name != target])
    frame = frame[frame[target].notna()].reset_index(drop=True)
    assert not search(frame, target, TARGETS[target], customer_id="id")
