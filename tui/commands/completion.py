"""`stage3-tui completion bash|zsh|fish`: print a script that completes commands, options and values."""

from __future__ import annotations

import argparse
import sys

from tui.commands.arguments import new_parser, parse
from tui.commands.flags import CommandLine, Flag, command_lines
from tui.commands.table import PROGRAM

HOW = f"""\
bash   {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}
zsh    {PROGRAM} completion zsh > "${{fpath[1]}}/_{PROGRAM}"     (a folder of $fpath, before compinit)
fish   {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish
"""


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    sys.stdout.write(SHELLS[args.shell]())
    return 0


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Print a script that completes commands, options and their values.",
        HOW,
        usage=f"{PROGRAM} completion bash|zsh|fish",
    )
    parser.add_argument("shell", choices=tuple(SHELLS), metavar="SHELL", help="bash, zsh or fish")
    return parser


# -- bash --------------------------------------------------------------------------------------------------------------

_BASH = """\
# bash completion of {program}; made by `{program} completion bash`
_stage3_tui() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="" words=""
    if [[ $current == "=" ]]; then
        current=""
    elif [[ $before == "=" ]]; then
        before="${{COMP_WORDS[COMP_CWORD-2]}}"
    fi
    COMPREPLY=()
    case "$before" in
{values}
    esac
    if (( COMP_CWORD > 1 )); then command="${{COMP_WORDS[1]}}"; fi
    case "$command" in
{commands}
        *) words="{without}" ;;
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=( $(compgen -W "$words" -- "$current") )
    elif (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W "{names}" -- "$current") )
    else
        case "$command" in
{arguments}
            *) compopt -o default 2>/dev/null ;;
        esac
    fi
}}
complete -F _stage3_tui {program}
"""


def bash() -> str:
    lines = command_lines()
    by_values: dict[str, list[str]] = {}
    for flag in _distinct(lines):
        if flag.kind != "nothing":
            by_values.setdefault(_bash_reply(flag), []).extend(flag.names)
    return _BASH.format(
        program=PROGRAM,
        values="\n".join(f"        {'|'.join(names)}) {reply}; return ;;" for reply, names in by_values.items()),
        commands="\n".join(f'        {line.name}) words="{_names(line)}" ;;' for line in lines if line.name),
        without=_names(lines[0]),
        names=" ".join(line.name for line in lines if line.name),
        arguments="\n".join(
            f'            {line.name}) COMPREPLY=( $(compgen -W "{" ".join(line.argument.choices)}" -- "$current") ) ;;'
            for line in lines
            if line.argument is not None and line.argument.choices
        ),
    )


def _bash_reply(flag: Flag) -> str:
    if flag.choices:
        return f'COMPREPLY=( $(compgen -W "{" ".join(flag.choices)}" -- "$current") )'
    return "compopt -o default 2>/dev/null" if flag.kind == "path" else ":"


def _names(line: CommandLine) -> str:
    return " ".join(name for flag in line.flags for name in flag.names)


def _distinct(lines: tuple[CommandLine, ...]) -> list[Flag]:
    """Each option once, since it means the same in every command."""
    return list({flag.names: flag for line in lines for flag in line.flags}.values())


# -- zsh ---------------------------------------------------------------------------------------------------------------

_ZSH = """\
#compdef {program}
# zsh completion of {program}; made by `{program} completion zsh`
_stage3_tui() {{
    local -a commands options
    local command=""
    commands=(
{commands}
    )
    (( CURRENT > 2 )) && command="$words[2]"
    case "$command" in
{options}
        *)
            options=(
{without}
            )
            ;;
    esac
    if (( CURRENT == 2 )) && [[ "$words[2]" != -* ]]; then
        _describe -t commands command commands
        return
    fi
    _arguments -S -s $options
}}
if [[ "$funcstack[1]" == "_{program}" ]]; then
    _stage3_tui "$@"
else
    compdef _stage3_tui {program}
fi
"""


def zsh() -> str:
    lines = command_lines()
    branches = []
    for line in lines:
        if line.name:
            specs = "\n".join(f"                {spec}" for spec in _zsh_specs(line))
            first = "                '1:command:'"
            branches.append(
                f"        {line.name})\n            options=(\n{first}\n{specs}\n            )\n            ;;"
            )
    return _ZSH.format(
        program=PROGRAM,
        commands="\n".join(f"        {_zsh_quoted(f'{line.name}:{line.sentence}')}" for line in lines if line.name),
        options="\n".join(branches),
        without="\n".join(f"                {spec}" for spec in _zsh_specs(lines[0])),
    )


def _zsh_specs(line: CommandLine) -> list[str]:
    specs = []
    for flag in line.flags:
        takes = "" if flag.kind == "nothing" else f":{_zsh_escaped(flag.metavar.lower())}:{_zsh_values(flag)}"
        equals = "" if flag.kind == "nothing" or not flag.names[0].startswith("--") else "="
        for name in flag.names:
            specs.append(_zsh_quoted(f"{name}{equals}[{_zsh_escaped(_brief(flag.sentence))}]{takes}"))
    if line.argument is not None:
        specs.append(_zsh_quoted(f"*:{_zsh_escaped(line.argument.metavar.lower())}:{_zsh_values(line.argument)}"))
    return specs


def _zsh_values(flag: Flag) -> str:
    if flag.choices:
        return f"({' '.join(flag.choices)})"
    return "_files" if flag.kind == "path" else " "


def _zsh_escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "[]:\\" else letter for letter in text)


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- fish --------------------------------------------------------------------------------------------------------------

_FISH = """\
# fish completion of {program}; made by `{program} completion fish`
function __stage3_tui_command
    set -l words (commandline -opc)
    if test (count $words) -lt 2; or string match -q -- '-*' $words[2]
        echo none
    else
        echo $words[2]
    end
end
complete -c {program} -f
{lines}
"""


def fish() -> str:
    lines = command_lines()
    shown = [
        f"complete -c {PROGRAM} -n 'test (count (commandline -opc)) -lt 2' -a {line.name} -d {_fish_quoted(line.sentence)}"
        for line in lines
        if line.name
    ]
    for line in lines:
        condition = f"-n 'test (__stage3_tui_command) = {line.name or 'none'}'"
        for flag in line.flags:
            for name in flag.names:
                shown.append(f"complete -c {PROGRAM} {condition} {_fish_name(name)} {_fish_takes(flag)}")
        if line.argument is not None:
            values = f"-a {_fish_quoted(' '.join(line.argument.choices))}" if line.argument.choices else "-F"
            shown.append(f"complete -c {PROGRAM} {condition} {values}")
    return _FISH.format(program=PROGRAM, lines="\n".join(shown))


def _fish_name(name: str) -> str:
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"


def _fish_takes(flag: Flag) -> str:
    sentence = f"-d {_fish_quoted(_brief(flag.sentence))}"
    if flag.kind == "nothing":
        return sentence
    values = (
        f"-x -a {_fish_quoted(' '.join(flag.choices))}" if flag.choices else "-r -F" if flag.kind == "path" else "-x"
    )
    return f"{values} {sentence}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _brief(sentence: str) -> str:
    """The first sentence, as the description of a completion."""
    return sentence.partition(". ")[0].removesuffix(".")


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
