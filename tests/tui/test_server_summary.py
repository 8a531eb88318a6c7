"""The servers of a run in one line: on the pairs screen, and in the lines of `--auto`."""

from __future__ import annotations

from engine.core.events import Progress, ServerReading, Servers, StageStarted
from engine.run.journal import Entry
from engine.run.state import RunState
from tui.commands.printers import live_line
from tui.commands.run_lines import ProgressThrottle
from tui.screens.pairs import servers_line
from tui.server_summary import servers_summary

OUT = ServerReading(
    "http://b:8000/v1", "out", "The server at http://b:8000/v1 cannot be reached. All connection attempts failed.", 3.0
)


def busy(url: str, running: float | None, waiting: float | None, cache: float | None) -> ServerReading:
    return ServerReading(url, in_flight=4, answered=9, running=running, waiting=waiting, cache=cache)


def words(*readings: ServerReading, role: str = "server") -> str:
    return servers_summary({role: Servers(role, readings)})


def test_a_single_server_without_figures_is_not_shown():
    assert words(ServerReading("http://a/v1")) == "" == servers_summary({})


def test_an_unavailable_server_is_shown_with_its_reason():
    assert words(ServerReading("http://a/v1"), OUT) == "1 of 2 servers · http://b:8000/v1 cannot be reached"
    assert words(ServerReading("http://a/v1", "resting", "429")) == "http://a/v1 is rate-limited"


def test_the_load_is_added_up():
    text = words(
        busy("http://a/v1", 14, 3, 0.41), busy("http://c/v1", 2, 0, 0.105), busy("http://d/v1", None, None, None)
    )
    assert text == "3 of 3 servers · 16 running, 3 waiting, cache 41%"
    assert words(busy("http://a/v1", 14, 3, 0.41)) == "14 running, 3 waiting, cache 41%"


def test_each_role_has_its_own():
    of = {role: Servers(role, (busy("http://a/v1", 1, 0, None),)) for role in ("server", "critic", "judge")}
    assert servers_summary(of) == "1 running, 0 waiting   critic: 1 running, 0 waiting   judge: 1 running, 0 waiting"


def test_text_of_a_server_is_one_line_of_visible_text():
    hostile = ServerReading("http://b/v1", "out", "The server at http://b/v1 \x1b[2Jreturns\n500 [bold]\u202e.")
    text = words(ServerReading("http://a/v1"), hostile)
    assert "\x1b" not in text and "\n" not in text and "\u202e" not in text and "[bold]" in text
    [line] = servers_line({"server": Servers("server", (hostile,))}, 40)
    assert line.cell_length <= 40 and "[bold]" in text


def after(*events: object) -> RunState:
    state = RunState()
    for number, event in enumerate(events):
        state = state.apply_entry(Entry(number, 100.0 + number, event))  # type: ignore[arg-type]
    return state


def test_the_line_of_auto_has_the_servers_until_the_stage_ends():
    progress = Progress(3, 12, "pairs", stage="pairs")
    state = after(StageStarted("pairs"), progress, Servers("server", (ServerReading("http://a/v1"), OUT)))
    text = "3/12 pairs  1 of 2 servers · http://b:8000/v1 cannot be reached"
    assert text in live_line(state, 104.0).plain
    assert text in ProgressThrottle().line(Entry(9, 104.0, progress), state)
    later = state.apply_entry(Entry(9, 110.0, StageStarted("quality")))
    assert later.servers == {}
