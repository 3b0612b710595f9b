"""The manual page of the command line against the program itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

import secateur
from secateur.driver.cli import app
from secateur.driver.failures import INTERRUPTED

from .cli_runs import ROOT, invoke

pytestmark = pytest.mark.usefixtures("example_folder")


MANUAL = (ROOT / "docs" / "cli.md").read_text("utf-8")


def parameters() -> dict[str, Any]:
    """Every command's parameters, as the program itself knows them."""
    group: Any = typer.main.get_command(app)
    return {name: entry.params for name, entry in group.commands.items()}


def section(name: str) -> str:
    found = re.search(rf"^## `secateur {name}.*?(?=^## |\Z)", MANUAL, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on {name}"
    return found[0]


@pytest.mark.parametrize("name", parameters())
def test_the_manual_has_every_option(name: str) -> None:
    text = section(name)
    rows = dict(re.findall(r"^\| `(-[^|]*)` \| (.*) \|$", text, re.MULTILINE))
    listed = {flag for row in rows for flag in re.findall(r"--?[a-z-]+", row.split(" ")[0])}
    listed |= {flag for row in rows for flag in re.findall(r"(?:^|, )(--?[a-z-]+)", row)}
    known: set[str] = set()
    for parameter in parameters()[name]:
        if parameter.param_type_name == "argument":
            assert f"`{(parameter.metavar or parameter.name).upper()}`" in text
            continue
        known |= {*parameter.opts, *parameter.secondary_opts}
        (row,) = (v for k, v in rows.items() if parameter.opts[0] in re.findall(r"--[a-z-]+", k))
        default = parameter.default
        if isinstance(default, (int, float, str)) and not isinstance(default, bool):
            assert f"`{default}`" in row, f"{parameter.opts[0]} of {name} has default {default}"
    assert listed == known - {"-h", "--help"}


def test_the_manual_has_every_command_and_exit_code() -> None:
    assert re.findall(r"^## `secateur (\w+)", MANUAL, re.MULTILINE) == list(parameters())
    errors = secateur.SecateurError.__subclasses__()
    codes = {0, 1, INTERRUPTED, *(error.exit_code for error in errors)}
    assert set(map(int, re.findall(r"^\| (\d+) \|", MANUAL, re.MULTILINE))) == codes
    assert "SECATEUR_DEBUG" in MANUAL


def test_the_manual_shows_a_configuration_that_works() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    Path("c.toml").write_text(text)
    (line,) = re.findall(r"^secateur run .*--pipeline '(.*)'$", MANUAL, re.MULTILINE)
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--json"]
    by_file = json.loads(invoke(*run, "--config", "c.toml").stdout)
    by_text = json.loads(invoke(*run, "--pipeline", line).stdout)
    assert by_file["pipeline"] == by_text["pipeline"]
