"""Tables whose names, labels and values are what other programs stumble over or would run."""

import csv
from pathlib import Path

import numpy as np

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
    "cost/", "/", "a/b", "../../up", "..", ".", "a.b", "a\\b", "per%cent", "%s %(name)s {0} {x}", "#hash", "a:b",
    "a?b=c&d", "quote'single", "quote\"double", "back`tick", "new\nline", "tab\there", " leading", "trailing ",
    "[red]", "[link=x]y[/link]", "$math$", "$", "index", "level_0", "prediction", "probability", "model_version",
    "error", "label", "request_id", "class", "lambda", "None", "self", "rows", "model_config", "Case", "case", "CASE",
    "a b", "a_b", "a-b", "price", "price ", "=1+1", "-x", "@x", "+x", "나이 (만)", "지역/시",
    "\U0001f469\u200d\U0001f4bb",
    "\U0001f600", "é", "x" * 300, "x" * 299 + "y", "긴" * 120, "\u001b[2Jclear", "pay\u202epal", "drift/x", "nan",
    "NaN", "1", "0", "<b>", "&amp;", "name=value", "a,b", "a;b", "~", "*", "_", "__dict__",
]  # fmt: skip


def write_nasty(path: Path, names: list[str], values: list[str], labels: tuple[str, str], rows: int = 600) -> None:
    """Write a table that can be learned: each name a column of numbers, `text` of the values, and the target `y`."""
    random = np.random.default_rng(7)
    signal = random.normal(size=rows)
    target = np.where(signal + 0.3 * random.normal(size=rows) > 0, *labels)
    with path.open("w", encoding="utf-8", newline="", errors="surrogatepass") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *names, "text", "y"])
        others = random.normal(size=(rows, len(names)))
        for row in range(rows):
            numbers = [round(float(signal[row] if i == 0 else others[row, i]), 4) for i in range(len(names))]
            writer.writerow([row + 1, *numbers, values[row % len(values)], target[row]])
