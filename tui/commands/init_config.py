"""`--init-config`: write a TOML file of all options with descriptions and defaults, each commented out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.core.errors import ConfigError, DiskError
from engine.core.options import Option, options
from tui.commands.table import PROGRAM

HEAD = f"""\
# All options of {PROGRAM} with their defaults. To set one, remove the `#` before its key; to use the file, pass it with
# --config. The command line takes precedence, then the environment (STAGE3_NUM_EXAMPLES), then this file.
"""


def write_config(name: str) -> int:
    """Write the file; `-` is standard output. Raises ConfigError if it exists, DiskError if it cannot be written."""
    if name == "-":
        sys.stdout.write(config_text())
        return 0
    try:
        with Path(name).open("x", encoding="utf-8") as file:
            file.write(config_text())
    except FileExistsError:
        advice = f"Choose another file with `{PROGRAM} --init-config FILE`; - is standard output."
        raise ConfigError(f"{name} already exists.", "It may contain options that you have set.", advice) from None
    except OSError as error:
        raise DiskError(f"Cannot write {name}.", str(error), f"`{PROGRAM} --init-config -` prints it.") from error
    print(f"{name}: {len(options())} options with their defaults. Use it with `{PROGRAM} --config {name}`.")
    return 0


def config_text() -> str:
    """The file's text: valid TOML as it is, and after uncommenting any key with a default."""
    blocks = [HEAD]
    for group in dict.fromkeys(option.group for option in options()):
        blocks.append(f"# ---- {group} {'-' * (74 - len(group))}\n")
        blocks += [_block(option) for option in options() if option.group == group]
    return "\n".join(blocks)


def _block(option: Option) -> str:
    value = toml_value(option)
    line = f"# {option.name} = {value}" if value else f"# {option.name} =   ({option.allowed}; not set)"
    return f"# {option.sentence}\n{line}\n"


def toml_value(option: Option) -> str:
    """The default as TOML; empty if there is none."""
    if not option.default:
        return ""
    kind = option.annotation.removesuffix(" | None")
    if kind == "bool":
        return option.default.lower()
    return option.default if kind in ("int", "float") else json.dumps(option.default)
