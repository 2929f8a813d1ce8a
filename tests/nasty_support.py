"""Tables whose names, labels and values break other programs or would be executed by them."""

import numpy as np
import pandas as pd

SCRIPT = "document.documentElement.dataset.planted='1'"
MARKUP = [  # each would run `SCRIPT`, or fetch from another host, where it is taken for markup
    f'<img src=x onerror="{SCRIPT}">',
    f"</script><script>{SCRIPT}</script>",
    f'"><svg onload={SCRIPT}>',
    f'<a href="javascript:{SCRIPT}">open</a>',
    "![picture](http://planted.invalid/a.png)",
    "[link](http://planted.invalid/b) <http://planted.invalid/c>",
    "a | b |\n| --- | --- |\n| c | d",
    f"`{SCRIPT}` **bold** {{{{7*7}}}} ${{7*7}} [[7*7]]",
]
NAMES = [  # that files, addresses, metric names, markup and Python have a meaning for
    "\u001b[2Jclear", "pay\u202epal", "cost/", "/", "a/b", "../../up", "..", ".", "a.b", "a\\b", "per%cent",
    "%s %(name)s {0} {x}", "#hash", "a:b",
    "a?b=c&d", "quote'single", "quote\"double", "back`tick", "new\nline", "tab\there", " leading", "trailing ",
    "[red]", "[link=x]y[/link]", "$math$", "$", "index", "level_0", "prediction", "probability", "model_version",
    "error", "label", "request_id", "class", "lambda", "None", "self", "rows", "model_config", "Case", "case", "CASE",
    "a b", "a_b", "a-b", "price", "price ", "=1+1", "-x", "@x", "+x", "나이 (만)", "지역/시",
    "\U0001f469\u200d\U0001f4bb",
    "\U0001f600", "é", "x" * 300, "x" * 299 + "y", "긴" * 120, "drift/x", "nan",
    "NaN", "1", "0", "<b>", "&amp;", "name=value", "a,b", "a;b", "~", "*", "_", "__dict__",
]  # fmt: skip


def make_nasty(rows: int, start: int = 0, moved: float = 0.0) -> pd.DataFrame:
    """Rows that can be learned: ids, labels and texts of markup, and a column of numbers for each name.

    Args:
        rows: How many.
        start: The number of the first row, which names it.
        moved: How far all numbers are moved.
    """
    random = np.random.default_rng(start)
    signal = random.normal(size=rows)
    columns: dict[str, object] = {"id": [f"{MARKUP[i % len(MARKUP)]} {start + i}" for i in range(rows)]}
    columns[MARKUP[0]] = (signal + moved).round(4)
    for name in [*MARKUP[1:], *NAMES]:
        columns[name] = (random.normal(size=rows) + moved).round(4)
    columns["text"] = [MARKUP[i] for i in random.integers(0, len(MARKUP), rows)]
    columns["y"] = np.where(signal + 0.3 * random.normal(size=rows) > 0, MARKUP[0], MARKUP[1])
    return pd.DataFrame(columns)
