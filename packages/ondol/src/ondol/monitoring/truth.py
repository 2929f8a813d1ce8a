"""Labels come late: each run looks again at the last windows whose rows they may have reached."""

import pandas as pd

from ondol.config.settings import Settings
from ondol.errors import UserError
from ondol.monitoring.judging import measured
from ondol.monitoring.labels import Labels, read_labels
from ondol.monitoring.performance import measure
from ondol.monitoring.watching import Watch
from ondol.monitoring.windows import Window, Windows


def measure_windows(settings: Settings, watch: Watch, windows: list[Window]) -> list[Window]:
    """Return the windows with their performance, as far as labels have come and the samples are kept.

    Labels that cannot be read are noted: drift is looked at all the same.
    """
    if settings.monitor.labels is None:
        return windows
    kept = {window.id: Windows(settings.store_path).read_sample(window.id) for window in windows if window.judged}
    samples = {name: sample for name, sample in kept.items() if sample is not None}
    try:
        labels = read_labels(settings, watch.reference.contract, list(samples.values()))
    except UserError as error:
        return [window.model_copy(update={"notes": (str(error),)}) for window in windows]
    return [
        _measure(settings, watch, window, samples[window.id], labels) if window.id in samples else window
        for window in windows
    ]


def _measure(settings: Settings, watch: Watch, window: Window, sample: pd.DataFrame, labels: Labels) -> Window:
    rows, least = labels.join(sample), settings.monitor.min_rows
    if len(rows) < least:
        note = f"{len(rows):,} of {len(sample):,} compared rows have a label, too few to judge: {least:,} are needed"
        return window.model_copy(update={"notes": (note,)})
    holdout = watch.bundle.meta.get("metrics") or {}
    found = measure(watch.reference.contract, holdout, rows, settings.gates, settings.monitor.loss)
    if found is None:
        note = f"the metric cannot be measured on {len(rows):,} labelled rows: they may be of one class only"
        return window.model_copy(update={"notes": (note,)})
    return measured(window.model_copy(update={"notes": ()}), found, settings.monitor.drift_share)
