"""Text of the data on consoles and in logs: nothing of it moves the cursor, sets a style or hides."""

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from template_support import python_path
from typer.testing import CliRunner

from ondol.cli.console import Console, print_plain
from ondol.errors import UserError
from ondol_serving.names import printable

RAW = [
    "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\x08", "pay\u202epal", "\u2066x\u2069", "한\u200b국", "\ud800",
    "\ufeff", "pay\u200dpal", "\u3164",
]  # fmt: skip
READABLE = [
    "나이 (만)", "\u1100\u1161", "é", "Ω≈ç√", "a\tb\nc", "葛\U000e0100",
    "\U0001f469\u200d\U0001f4bb", "\u2764\ufe0f\u200d\U0001f525", "\U0001f3f4\u200d\u2620\ufe0f", "1\ufe0f\u20e3",
    "\U0001f469\U0001f3fd\u200d\U0001f91d\u200d\U0001f468\U0001f3fb",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937",
]  # fmt: skip
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def is_raw(text: str) -> bool:
    """Whether text holds what `RAW` is about."""
    return HARMFUL.search(text) is not None


@pytest.mark.parametrize("text", RAW)
def test_control_bidi_and_invisible_characters_are_shown_as_escapes(text):
    shown = printable(f"<{text}>")
    assert not is_raw(shown) and shown.encode("utf-8")
    assert "\\" in shown and shown.startswith("<") and shown.endswith(">")


@pytest.mark.parametrize("text", READABLE)
def test_scripts_and_emoji_stay_readable(text):
    assert printable(text) == text


@given(st.text(alphabet=st.characters()))
def test_any_text_is_safe_to_print_and_escaping_twice_changes_nothing(text):
    shown = printable(text)
    assert not is_raw(shown)
    assert printable(shown) == shown
    assert "\n" not in printable(text, one_line=True)


def test_a_console_escapes_strings_tables_titles_and_spinners_and_keeps_its_own_colours():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, emoji=False, highlight=False)
    hostile = "\x1b]0;t\x07\u202ecol:red_heart:"
    table = Table("a", title=hostile)
    table.add_row(hostile)
    console.print(f"[green]x[/] {hostile}")
    console.print(hostile, markup=False)
    console.print(table)
    with console.status(hostile):
        pass
    text = out.getvalue()
    assert "\x1b]" not in text and "\x07" not in text and "\u202e" not in text
    assert "\x1b[32mx\x1b[0m" in text  # its own style
    assert text.count("\\x1b]0;t\\x07\\u202ecol:red_heart:") >= 4
    lines = [line for line in text.splitlines() if line.startswith(("┃", "│"))]
    assert (
        len({len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) for line in lines}) == 1
    )  # widths are of what is shown


def test_a_users_mistake_and_plain_output_are_escaped(capsys):
    assert str(UserError('No column "\x1b[2J\nError: x"')) == 'No column "\\x1b[2J Error: x"'
    print_plain("| \x1b[2J | 나이 |")
    assert capsys.readouterr().out == "| \\x1b[2J | 나이 |\n"


def test_every_log_handler_gets_message_and_traceback_escaped():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.Logger("elsewhere")
    logger.addHandler(handler)
    try:
        raise ValueError("\x1b[2J\u202e")
    except ValueError:
        logger.exception("column %s", "\x9bm나이")
    said = out.getvalue()
    assert "ERROR column \\x9bm나이" in said and "ValueError: \\x1b[2J\\u202e" in said
    assert not is_raw(said)


def test_the_log_of_a_background_process_is_escaped(tmp_path):
    code = r"import sys; sys.stdout.buffer.write('나이 \x1b[2J \u202e'.encode() + b' \xff\n')"
    # In a process of its own: the supervisor kills every process below it once the command has ended.
    supervisor = [sys.executable, "-m", "ondol.orchestration.supervisor"]
    done = subprocess.run([*supervisor, tmp_path / "a.log", tmp_path / "restarts.json", sys.executable, "-c", code])
    assert done.returncode == 1  # it ended at once
    said = (tmp_path / "a.log").read_text(encoding="utf-8")
    assert "나이 \\x1b[2J \\u202e \\xff" in said


@pytest.mark.parametrize("command", [["contract", "diff"], ["contract", "update"]])
def test_help_texts_show_the_names_of_settings(command, monkeypatch):
    from ondol.cli.app import app

    monkeypatch.setenv("COLUMNS", "120")
    assert "[data] source" in CliRunner().invoke(app, [*command, "--help"]).output


def test_the_service_logs_printable_records_without_flows(tmp_path):
    code = (
        "import logging, sys, service.service; assert 'ondol' not in sys.modules; "
        "print(logging.getLogRecordFactory()('n', 40, 'p', 1, '%s', ('\\x1b[2J나이',), None).getMessage())"
    )
    template = Path(__file__).parents[3] / "template"
    env = os.environ | {"PYTHONPATH": python_path(template), "BENTOML_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip().endswith("\\x1b[2J나이"), done.stderr
