"""Files of a run that another program has changed: each is reported by name or skipped; nothing crashes or hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import DamagedState, ExitCode, Stage3Error, UnsafeError
from engine.core.events import Message, StageFinished, StageStarted
from engine.core.nesting import check_nesting
from engine.core.reading import TooLarge, read_file, read_toml, read_yaml
from engine.dpo.training.checkpoints import MANIFEST, newest_good, rotate, write_checkpoint
from engine.hub.token_file import read_token_file
from engine.pairs.formats.containers import rows_of
from engine.pairs.generation.batch_plan import BatchPlan, read_plan
from engine.pairs.generation.generate import RecordIndex, require_acknowledged
from engine.pairs.generation.prompts import Prompt
from engine.pipeline import session as session_module
from engine.pipeline.session import Session
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Journal, read_journal
from engine.run.state import fold
from engine.run.superseded import read_note
from engine.storage.documents import read_json, read_json_or_none
from engine.storage.files import sha256_of_file, write_atomically, write_json
from engine.storage.jsonl import MAX_LINE_BYTES, JsonlAppender, loads
from tests.support.small_stages import SmallStage, small_stages
from tui.cli import main
from tui.runs.tail import JsonlTail

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(autouse=True)
def nothing_waits_forever() -> Iterator[None]:
    """A test that opens a FIFO would wait for its writer: it fails after 30 s, and the others continue."""

    def time_out(*_: object) -> None:
        raise TimeoutError("waiting for a writer?")

    before = signal.signal(signal.SIGALRM, time_out)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a manifest and a journal."""
    new = Run(tmp_path / "run")
    new.acquire()
    new.save()
    journal = Journal(new / layout.EVENTS_JSONL)
    for event in (StageStarted("pairs"), StageFinished("pairs", "done", "160 usable of 160")):
        journal.append(event)
    journal.close()
    new.release()
    return new


# -- run.json ----------------------------------------------------------------------------------------------------------

DAMAGED_MANIFESTS = {
    "nothing": "",
    "a list": "[]",
    "no configuration": '{"schema":1,"stages":{}}',
    "a configuration that is a list": '{"schema":1,"stages":{},"config":[1]}',
    "a stage that is a list": '{"schema":1,"config":{},"stages":{"workspace":[1]}}',
    "an error that is a string": '{"schema":1,"config":{},"stages":{},"error":"boom"}',
    "a result that is a string": '{"schema":1,"config":{},"stages":{"packaging":{"status":"done","result":"x"}}}',
    "a field of a wrong type": '{"schema":1,"config":{},"stages":{"pairs":{"result":{"pairs_sha256":7}}}}',
    "a start that is a string": '{"schema":1,"config":{},"stages":{"pairs":{"started":"noon"}}}',
    "a newer schema": '{"schema":2,"config":{},"stages":{}}',
    "no schema": '{"config":{},"stages":{}}',
    "endless nesting": '{"schema":1,"config":{},"stages":{},"x":' + DEEP + "}",
    "more than 16 MiB": '{"schema":1,"config":{},"stages":{},"x":"' + "x" * (17 << 20) + '"}',
}


@pytest.mark.fault("A15", "F2-16", "F2-8")
@pytest.mark.parametrize("text", DAMAGED_MANIFESTS.values(), ids=DAMAGED_MANIFESTS.keys())
def test_a_run_json_with_wrong_types_is_reported_and_left_unchanged(
    text: str, run: Run, capsys: pytest.CaptureFixture[str]
):
    (run / layout.RUN_JSON).write_text(text)
    for command in (
        ["status", str(run.folder)],
        ["status", "--json", str(run.folder)],
        ["push", str(run.folder), "a/b"],
    ):
        assert main(command) == ExitCode.DAMAGED
        assert "run.json" in capsys.readouterr().err
    assert (run / layout.RUN_JSON).read_text() == text


@pytest.mark.fault("A15", "F2-16")
def test_a_result_of_an_older_version_may_lack_a_field(run: Run):
    manifest = {
        "schema": 1,
        "config": {},
        "stages": {"training": {"status": "done", "result": {"steps": 3}}},
        "more": 1,
    }
    (run / layout.RUN_JSON).write_text(json.dumps(manifest))
    assert Run(run.folder).manifest == manifest and Run(run.folder).results.training is None


# -- pipes, devices, links, folders ------------------------------------------------------------------------------------


def replace_by_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd")


@pytest.mark.fault("F2-10", "B10")
@pytest.mark.parametrize("replace", [replace_by_fifo, replace_by_link])
@pytest.mark.parametrize("name", [layout.RUN_JSON, layout.EVENTS_JSONL, layout.LOCK_FILE])
def test_status_refuses_a_pipe_or_a_link_in_place_of_a_file(name: str, replace: Callable[[Path], None], run: Run):
    replace(run / name)
    assert main(["status", str(run.folder)]) == ExitCode.UNSAFE


@pytest.mark.fault("F2-10", "B10")
@pytest.mark.parametrize("name", [*layout.FILES, "superseded/1/note.json", "cache/answers.jsonl", "checkpoints/x"])
def test_a_run_folder_that_contains_a_pipe_is_refused(name: str, run: Run):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    replace_by_fifo(run / name)
    with pytest.raises(UnsafeError, match="named pipe") as refused:
        Run(run.folder).acquire()
    assert name in refused.value.what


@pytest.mark.fault("F2-17")
@pytest.mark.parametrize("name", layout.FILES)
def test_a_folder_in_place_of_a_file_is_reported(name: str, run: Run):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir(parents=True)
    with pytest.raises(DamagedState) as refused:
        Run(run.folder).acquire()
    assert name in refused.value.what


@pytest.mark.fault("F2-17")
@pytest.mark.parametrize("name", ["superseded", "pairs", "checkpoints", "models", "cache"])
def test_a_file_in_place_of_a_folder_is_reported(name: str, run: Run):
    (run / name).write_text("x")
    with pytest.raises(DamagedState, match="is a file") as refused:
        Run(run.folder).acquire()
    assert name in refused.value.what


@pytest.mark.fault("F2-10")
@pytest.mark.parametrize("name", ["options.toml", "rows.jsonl", "rows.jsonl.gz", "token"])
def test_a_named_pipe_is_refused_as_an_input_file(name: str, tmp_path: Path):
    path = tmp_path / name
    os.mkfifo(path, 0o600)
    readers: dict[str, Callable[[Path], Any]] = {
        "options.toml": read_toml,
        "token": lambda path: read_token_file(str(path)),
    }
    with pytest.raises(UnsafeError, match="named pipe"):
        readers.get(name, lambda path: list(rows_of(path)))(path)


@pytest.mark.fault("F2-10")
def test_commands_exit_with_12_if_an_input_file_is_a_named_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert main(["--auto", "--config", str(tmp_path / "pipe"), "--output-dir", str(tmp_path / "run")]) == 12
    assert main(["validate", str(tmp_path / "pipe")]) == 12
    assert not (tmp_path / "run").exists()


def test_a_pipe_that_the_shell_has_opened_is_read(tmp_path: Path):
    reader, writer = os.pipe()
    os.write(writer, b'prompt = "x"\n')
    os.close(writer)
    assert read_toml(Path(f"/dev/fd/{reader}")) == {"prompt": "x"}
    os.close(reader)


@pytest.mark.fault("F2-10")
def test_pipes_and_devices_are_neither_hashed_nor_read_nor_appended_to(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UnsafeError):
            sha256_of_file(path)
        with pytest.raises(UnsafeError):
            read_json_or_none(path, dict[str, Any])
        with pytest.raises(UnsafeError):
            JsonlAppender(path)


# -- files that are replaced while they are open -----------------------------------------------------------------------


def replace(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".swp"))
    path.with_suffix(".swp").replace(path)


def remove(path: Path) -> None:
    path.unlink()


def move_away_with_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.fault("C12", "F2-1")
@pytest.mark.parametrize("act", [replace, remove, move_away_with_folder])
def test_nothing_is_acknowledged_after_the_open_file_is_replaced_or_removed(
    act: Callable[[Path], None], tmp_path: Path
):
    path = tmp_path / "pairs/pairs.jsonl"
    with JsonlAppender(path) as appender:
        appender.append({"id": "a"})
        act(path)
        with pytest.raises(DamagedState, match=r"pairs\.jsonl was re(placed|moved)"):
            appender.append({"id": "b"})
        with pytest.raises(DamagedState):
            appender.append({"id": "c"}, sync=False)


@pytest.mark.fault("C12", "F2-1", "B10")
def test_an_appender_refuses_a_link_in_place_of_its_file(tmp_path: Path):
    path, precious = tmp_path / "pairs.jsonl", tmp_path / "precious"
    precious.write_text("mine\n")
    with JsonlAppender(path) as appender:
        path.unlink()
        path.symlink_to(precious)
        with pytest.raises(UnsafeError, match="is a link"):
            appender.append({"id": "b"})
    with pytest.raises(UnsafeError, match="is a link"):
        JsonlAppender(path)
    assert precious.read_text() == "mine\n"


@pytest.mark.fault("C12", "F2-1", "F2-3")
def test_a_finished_stage_has_a_record_of_every_prompt_and_of_everything_it_acknowledged(tmp_path: Path):
    prompts = [Prompt(f"p{number}", [{"role": "user", "content": "Mend it?"}]) for number in range(4)]
    path = tmp_path / "pairs.jsonl"

    def write_records(*ids: str) -> None:
        path.write_text("".join(json.dumps({"id": name, "status": "ok"}) + "\n" for name in ids))

    write_records("p0", "p1", "p2", "p3")
    recorded = RecordIndex.read(path)
    require_acknowledged(path, prompts, recorded, None)
    write_records("p0", "p1", "p3")
    with pytest.raises(DamagedState, match="has 3 of 4 records") as refused:
        require_acknowledged(path, prompts, recorded, None)
    assert "p2" in refused.value.why
    with pytest.raises(DamagedState, match="has 3 of 3"):
        require_acknowledged(path, prompts, RecordIndex.read(path), None)  # a record of an unknown prompt


def run_small(context: Context, monkeypatch: pytest.MonkeyPatch, act: Callable[[Run], None]) -> ExitCode:
    """Run ten small stages; at the start of stage pairs, `act` changes the folder."""
    stages = small_stages(monkeypatch)
    monkeypatch.setattr(session_module, "prepare_process", lambda _: None)
    pairs: SmallStage = stages["pairs"]
    run_pairs = pairs.run

    def change_and_run(context: Context) -> Any:
        act(context.run)
        return (yield from run_pairs(context))

    pairs.run = change_and_run  # type: ignore[method-assign]
    context.run.acquire()
    session = Session(context, lambda entry: None)
    try:
        return session.run()
    finally:
        session.close()
        context.run.release()


@pytest.mark.fault("B10", "F2-2")
def test_a_link_that_takes_the_place_of_the_pairs_folder_during_a_run_is_refused(context, monkeypatch, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.mkdir()
    run_context = context()
    code = run_small(run_context, monkeypatch, lambda run: (run / "pairs").symlink_to(victim))
    assert code == ExitCode.UNSAFE and list(victim.iterdir()) == []
    assert Run(run_context.run.folder).stage("pairs")["status"] == "refused"


@pytest.mark.fault("C12", "F2-1")
@pytest.mark.parametrize("act", [replace, remove])
def test_a_replaced_or_removed_journal_ends_the_run_and_run_json_records_why(act, context, monkeypatch):
    run_context = context()
    assert run_small(run_context, monkeypatch, lambda run: act(run / layout.EVENTS_JSONL)) == ExitCode.DAMAGED
    recorded = Run(run_context.run.folder).stage("pairs")
    assert recorded["status"] == "failed" and "events.jsonl was re" in recorded["error"]["what"]


# -- the journal -------------------------------------------------------------------------------------------------------

STAMP = '"seq":99999,"time":1.0'
OF_ANOTHER_VERSION = {
    "an unknown stage": f'{{{STAMP},"kind":"progress","stage":"distill","done":1,"total":2,"unit":"x"}}',
    "the start of an unknown stage": f'{{{STAMP},"kind":"stage_started","stage":"distill"}}',
    "a check of an unknown stage": f'{{{STAMP},"kind":"check","stage":"distill","name":"a","status":"ok"}}',
    "an unknown outcome": f'{{{STAMP},"kind":"stage_finished","stage":"pairs","outcome":"paused"}}',
    "a stage that is a list": f'{{{STAMP},"kind":"stage_finished","stage":[1],"outcome":"done"}}',
    "a summary that is a number": f'{{{STAMP},"kind":"stage_finished","stage":"pairs","outcome":"done","summary":5}}',
    "telemetry of numbers": f'{{{STAMP},"kind":"telemetry","gpus":[7],"rss_bytes":1,"host_used_bytes":1,'
    '"host_total_bytes":1}',
    "memory that is a string": f'{{{STAMP},"kind":"telemetry","gpus":[],"rss_bytes":"x","host_used_bytes":1,'
    '"host_total_bytes":1}',
    "an enormous number": '{"seq":1e308,"time":1.0,"kind":"message","level":"info","text":"x"}',
    "a negative number": '{"seq":-1,"time":1.0,"kind":"message","level":"info","text":"x"}',
    "an enormous time": '{"seq":99999,"time":1e300,"kind":"stage_started","stage":"pairs"}',
    "a verdict that is a number": f'{{{STAMP},"kind":"eval_done","verdict":7,"reasons":[1]}}',
    "an unknown kind": f'{{{STAMP},"kind":"distilled","n":1}}',
    "not an object": "[1,2]",
    "NULs": "\0\0\0",
    "endless nesting": '{"seq":1,"time":1.0,"kind":"message","level":"info","text":' + DEEP + "}",
    "a line of 17 MiB": '{"seq":1,"time":1.0,"kind":"message","level":"info","text":"' + "x" * (17 << 20) + '"}',
}


@pytest.mark.fault("A15", "F2-15", "F2-8")
@pytest.mark.parametrize("line", OF_ANOTHER_VERSION.values(), ids=OF_ANOTHER_VERSION.keys())
def test_journal_lines_of_another_version_are_skipped_and_counted(
    line: str, run: Run, capsys: pytest.CaptureFixture[str]
):
    path = run / layout.EVENTS_JSONL
    with path.open("a") as file:
        file.write(f"{line}\n")
    journal = Journal(path)
    assert journal.append(Message("info", "it continues")).seq == 2
    journal.close()
    state = fold(read_journal(path))
    assert state.skipped_lines == 1 and state.last_seq == 2 and state.stages["pairs"].status == "done"
    assert main(["status", str(run.folder)]) == 0
    assert "skipped 1 line of logs/events.jsonl" in capsys.readouterr().out
    assert main(["status", "--json", str(run.folder)]) == 0
    assert json.loads(capsys.readouterr().out)["events_passed_over"] == 1


@pytest.mark.fault("A15", "F2-15")
def test_random_bytes_at_the_end_of_the_journal_break_nothing(run: Run):
    with (run / layout.EVENTS_JSONL).open("ab") as file:
        file.write(os.urandom(100_000))
    assert main(["status", str(run.folder)]) == 0
    Journal(run / layout.EVENTS_JSONL).close()


@pytest.mark.fault("F2-15", "F2-6")
def test_a_reader_that_follows_a_file_gets_past_a_line_that_is_too_long(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a":1}\n"' + b"x" * (MAX_LINE_BYTES + 100) + b'"\n{"b":2}\n')
    tail, found = JsonlTail(path), []
    for _ in range(4):
        found += tail.read().lines
    assert [line.record for line in (found[0], found[-1])] == [{"a": 1}, {"b": 2}] and len(found) == 3
    assert [line.number for line in found] == [0, 1, 2]


# -- plans and other documents -----------------------------------------------------------------------------------------

PLAN = BatchPlan("these prompts", 0, 4, 20)


@pytest.mark.fault("F2-3", "F2-17")
@pytest.mark.parametrize(
    "change",
    [
        *({"batch_size": size} for size in (0, -3, "4", 4.0, True, 1 << 40)),
        {"records_before": -1},
        {"longest_tokens": None},
        {"made_for": "others"},
    ],
)
def test_an_impossible_batch_plan_is_ignored(change: dict[str, Any], tmp_path: Path):
    PLAN.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json", "these prompts") == PLAN
    write_json(tmp_path / "plan.json", {**PLAN.__dict__, **change})
    assert read_plan(tmp_path / "plan.json", "these prompts") is None


@pytest.mark.fault("F2-3", "F2-17", "F2-8")
@pytest.mark.parametrize("text", ["", "garbage{", "{}", "[]", DEEP, "\0", '{"a":1,"a":2}', "NaN"])
def test_a_damaged_document_is_an_error_or_ignored_as_its_reader_requires(text: str, tmp_path: Path):
    path = tmp_path / "document.json"
    path.write_text(text)
    assert read_json_or_none(path, BatchPlan) is None
    with pytest.raises(DamagedState, match=r"Cannot read .*document\.json"):
        read_json(path, BatchPlan)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", BatchPlan)
    (tmp_path / layout.SUPERSEDED_NOTE).write_text(text)
    assert read_note(tmp_path) == {}


@pytest.mark.fault("F2-6")
def test_an_oversized_document_is_not_read_to_its_end(tmp_path: Path):
    path = tmp_path / "document.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    started = time.monotonic()
    with pytest.raises(DamagedState, match="Cannot read"):
        read_json(path, dict[str, Any])
    with pytest.raises(TooLarge, match="larger than 1 MiB"):
        read_file(path, 1 << 20)
    assert time.monotonic() - started < 20


@pytest.mark.fault("F2-17")
def test_records_without_an_id_count_as_missing(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"a": 1}\n{"id": 7}\n[]\n{"id": "p", "status": "ok"}\n{"id": "q"}\n')
    assert list(RecordIndex.read(path).ids) == ["p", "q"] and RecordIndex.read(path).ok == 1


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (40, 54):
        write_checkpoint(tmp_path / "c", step, lambda part: (part / "weights").write_bytes(b"w" * 100), "this training")
    return tmp_path / "c"


BROKEN_MANIFESTS = {
    "facts that are numbers": lambda manifest: {**manifest, "files": dict.fromkeys(manifest["files"], 1)},
    "no files": lambda manifest: {**manifest, "files": {}},
    "a list": lambda manifest: [manifest],
    "files outside the checkpoint": lambda manifest: {**manifest, "files": {"../../x": {"bytes": 1, "sha256": "0"}}},
    "a step that is a list": lambda manifest: {**manifest, "step": [54]},
}


@pytest.mark.fault("D14", "F2-17", "F2-8")
@pytest.mark.parametrize("change", BROKEN_MANIFESTS.values(), ids=BROKEN_MANIFESTS.keys())
def test_a_checkpoint_with_an_invalid_manifest_is_skipped(change: Callable[[Any], Any], checkpoints: Path):
    path = checkpoints / "checkpoint-54" / MANIFEST
    write_json(path, change(json.loads(path.read_text())))
    newest, messages = newest_good(checkpoints, "this training")
    assert newest == checkpoints / "checkpoint-40" and len(messages) == 1


@pytest.mark.fault("D14", "F2-17", "F2-8")
def test_a_checkpoint_with_an_endlessly_nested_manifest_is_skipped(checkpoints: Path):
    (checkpoints / "checkpoint-54" / MANIFEST).write_text(DEEP)
    assert newest_good(checkpoints, "this training")[0] == checkpoints / "checkpoint-40"


@pytest.mark.fault("F2-17")
def test_files_and_links_among_the_checkpoints_do_not_stop_training_and_links_are_not_followed(
    checkpoints: Path, tmp_path: Path
):
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/x").write_text("precious")
    (checkpoints / ".checkpoint-60.part").symlink_to("../keep")
    (checkpoints / ".checkpoint-61.part").write_text("")
    (checkpoints / "checkpoint-99").write_text("")
    (checkpoints / "checkpoint-98").symlink_to("../keep")
    newest, messages = newest_good(checkpoints, "this training")
    assert newest == checkpoints / "checkpoint-54" and len(messages) == 2
    (checkpoints / "checkpoint-98").symlink_to("../keep")
    rotate(checkpoints, keep=1)
    assert (tmp_path / "keep/x").read_text() == "precious"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-54", "checkpoint-98"]
    (checkpoints / ".checkpoint-70.part").symlink_to("../keep")
    write_checkpoint(checkpoints, 70, lambda part: (part / "weights").write_bytes(b"w"), "this training")
    assert (tmp_path / "keep/x").read_text() == "precious"


# -- files that a person passes to the program -------------------------------------------------------------------------


@pytest.mark.fault("F2-8")
def test_an_endlessly_nested_configuration_is_a_usage_error(tmp_path: Path, capsys):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    assert main(["--auto", "--config", str(tmp_path / "deep.toml")]) == ExitCode.USAGE
    assert "nested too deeply" in capsys.readouterr().err
    (tmp_path / "deep.yaml").write_text("[" * 5_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_yaml(tmp_path / "deep.yaml")


@pytest.mark.fault("F2-6", "F2-8")
def test_yaml_aliases_that_expand_to_a_billion_nodes_are_refused(tmp_path: Path):
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "constitution.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="expands to more than"):
        read_yaml(tmp_path / "constitution.yaml")


@pytest.mark.fault("F2-6")
def test_an_oversized_configuration_is_a_usage_error(tmp_path: Path):
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(1 << 40)
    assert main(["--auto", "--config", str(tmp_path / "large.toml")]) == ExitCode.USAGE


@pytest.mark.fault("F2-8")
def test_nesting_is_counted_in_levels():
    assert loads("[" * 100 + "]" * 100)
    for text in ("[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, DEEP):
        with pytest.raises(ValueError, match="nested too deeply"):
            loads(text)
    assert loads('"' + "[" * 5_000 + '"') == "[" * 5_000
    check_nesting([[0]] * 1000)


@pytest.mark.fault("F2-20", "F2-6")
def test_endless_input_is_not_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    (tmp_path / "token").write_text("x" * 100_000)
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(Stage3Error, match="There is no token in"):
        read_token_file(str(tmp_path / "token"))
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr("sys.stdin", endless)
        assert main(["--auto", "--token-stdin", "--output-dir", str(tmp_path / "run")]) == ExitCode.ACCESS
    assert "There is no token in standard input" in capsys.readouterr().err


def test_writing_a_file_follows_no_link_at_its_temporary_name(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".x.json.{os.getpid()}.part").symlink_to(precious)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "x.json", b"{}")
    assert precious.read_text() == "mine"
