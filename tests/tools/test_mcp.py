"""`rigbus mcp`: spoken to by the SDK's own client, over stdio in a process of its own or in this one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("mcp.server.mcpserver")

from mcp import Client, MCPError, StdioServerParameters

from rigbus.bus.paths import rig_paths
from rigbus.tools.mcp_desk import Desk
from rigbus.tools.mcp_parts import MAX_READ, READ_BYTES
from rigbus.tools.mcp_server import server

from .planned import BATCH, ID, MENDED, PLAN, answer_of, escalate, make_share, played_rig, put, sign

LOOKS = {"validate_plan", "batch_status", "task_log", "why", "read_result", "list_escalations"}
DOES = {"submit_plan", "answer_escalation", "cancel", "retry"}
FILES = {"plan.md": PLAN.replace("census", "fresh"), "scripts/count.py": MENDED}
TALK_S = 60.0


@pytest.fixture
def share(tmp_path):
    return make_share(tmp_path / "share")


def desk_of(share, answer_s: float = 0.2) -> Desk:
    return Desk(replace(rig_paths(share.parent / "state"), shared=share), answer_s)


def talk(share, speak: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    """What ``speak(client)`` returns, to a server in this process."""

    async def main() -> Any:
        desk = desk_of(share, options.pop("answer_s", 0.2))
        async with Client(server(desk, **options), read_timeout_seconds=TALK_S) as client:
            return await speak(client)

    return asyncio.run(main())


def call(share, tool: str, answer_s: float = 0.2, **arguments: Any) -> dict[str, Any]:
    """A tool's answer; an error of the tool is ``{"error": text}``."""

    async def speak(client: Client) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments)
        text = result.content[0].text
        said = text.removeprefix(f"Error executing tool {tool}: ")  # the SDK puts it before ours
        return {"error": said} if result.is_error else json.loads(text)

    found = talk(share, speak, answer_s=answer_s)
    assert isinstance(found, dict)
    return found


def test_over_stdio_a_client_finds_tools_resources_and_the_prompt_and_answers_an_escalation(share):
    escalate(share)
    environment = {**os.environ, "RIGBUS_STATE": str(share.parent / "state")}
    words = ["-m", "rigbus", "mcp", "--shared", str(share)]

    async def main() -> None:
        process = StdioServerParameters(command=sys.executable, args=words, env=environment)
        async with Client(process, read_timeout_seconds=TALK_S) as client:
            tools = await client.list_tools()
            assert {tool.name for tool in tools.tools} == LOOKS | DOES
            resources = await client.list_resources()
            uris = {str(resource.uri) for resource in resources.resources}
            assert uris == {"rigbus://plan-format", "rigbus://schemas", "rigbus://summaries/last"}
            text = (await client.read_resource("rigbus://plan-format")).contents[0].text
            assert text.startswith("# Plans")
            prompt = await client.get_prompt("write_a_rigbus_plan", {"goal": "count sheep"})
            assert "count sheep" in prompt.messages[0].content.text
            listed = await client.call_tool("list_escalations", {})
            assert json.loads(listed.content[0].text)["open"][0]["id"] == ID
            done = await client.call_tool("answer_escalation", {"escalation_id": ID, "action": "retry"})
            assert json.loads(done.content[0].text)["state"] == "accepted"

    with played_rig(share):
        asyncio.run(main())
    assert answer_of(share)["action"] == "retry"


def test_stdout_carries_the_protocol_only_and_rubbish_ends_nothing(share):
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    hello["params"] = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
    ask["params"] = {"name": "batch_status", "arguments": {"batch": "nothing"}}
    lines = [
        json.dumps(hello),
        "rubbish {",
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rigbus", "mcp", "--shared", str(share)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RIGBUS_STATE": str(share.parent / "state")},
    )
    watch = threading.Timer(TALK_S, process.kill)
    watch.start()
    try:
        process.stdin.write("\n".join([*lines, json.dumps(ask)]) + "\n")
        process.stdin.flush()
        said = []
        while not any(one.get("id") == 2 for one in said):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said.append(json.loads(line))
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(TALK_S) == 0
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    (answer,) = [one for one in said if one.get("id") == 2]
    assert answer["result"]["isError"] is True
    assert "NotFound: no batch 'nothing'" in answer["result"]["content"][0]["text"]


def test_without_the_package_it_says_how_to_install_it(say, share, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    said = say("mcp", "--shared", share)
    assert said.code == 2
    assert "pip install 'rigbus[mcp]'" in said.err


def test_its_help_loads_no_sdk():
    code = "import sys; from rigbus.tools.cli import run; run(['mcp', '--help']); print({'mcp', 'zmq'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_read_only_offers_what_changes_nothing(share):
    async def speak(client: Client) -> set[str]:
        return {tool.name for tool in (await client.list_tools()).tools}

    assert talk(share, speak, read_only=True) == LOOKS


class TestPlans:
    def test_a_plan_is_validated_by_name_or_as_files(self, share):
        assert call(share, "validate_plan", plan="census")["ok"] is True
        broken = {"plan.md": PLAN.replace("- **command**", "- **depends_on**: nobody\n- **command**")}
        found = call(share, "validate_plan", files=broken)
        assert found["ok"] is False
        fault = next(one for one in found["plans"][0]["faults"] if one["severity"] == "error")
        assert (fault["file"], fault["line"] > 0, bool(fault["fix"])) == ("plan.md", True, True)

    def test_a_new_plan_is_dropped_and_an_invalid_one_is_not(self, share):
        sign(share, 1e9)
        found = call(share, "submit_plan", name="fresh", files=FILES, config={"N": 1}, priority="high")
        assert (found["state"], found["tasks"]) == ("waits for the rig", 1)
        folder = share / "inbox" / "fresh"
        assert json.loads((folder / "READY").read_text()) == {"config": {"N": 1}, "priority": "high"}
        assert call(share, "submit_plan", name="fresh", files=FILES)["error"].startswith("Refused: ")
        bad = call(share, "submit_plan", name="other", files={"plan.md": "nothing"})
        assert bad["error"].startswith("PlanError: ")
        assert not (share / "inbox" / "other").exists()

    def test_a_plan_in_the_share_is_asked_for_by_a_request(self, share):
        sign(share, 1e9)
        assert call(share, "submit_plan", plan="census", config={"N": 1})["plan"] == "census"
        (file,) = (share / "inbox" / ".requests").glob("*.json")
        request = json.loads(file.read_bytes())
        assert (request["verb"], request["args"]) == ("submit", {"plan": "census", "config": {"N": 1}})

    @pytest.mark.parametrize("plan", ["../census", "/etc", "nothing", "", "x" * 999, "a\nb", "linked"])
    def test_a_plan_outside_of_plans_cannot_be_named(self, share, tmp_path, plan):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "plan.md").write_text(PLAN)
        (share / "plans" / "linked").symlink_to(outside)
        for tool in ("validate_plan", "submit_plan"):
            assert call(share, tool, plan=plan)["error"].startswith(("NotFound: ", "ConfigError: "))
        assert not list((share / "inbox" / ".requests").iterdir())

    @pytest.mark.parametrize(
        "arguments",
        [
            {"plan": "census", "files": FILES},
            {"name": "../x", "files": FILES},
            {"name": "x", "files": {"../x": ""}},
            {"name": "x", "files": {"plan.md": "x" * 2_000_000}},
            {"plan": "census", "config": {"x": "y" * 100_000}},
            {"plan": "census", "priority": "highest"},
            {"name": "x", "files": "plan.md"},
            {"name": "x", "files": FILES | {f"lib/{n}.py": "" for n in range(100)}},
        ],
    )
    def test_bad_arguments_are_named_errors_and_write_nothing(self, share, arguments):
        assert "error" in call(share, "submit_plan", **arguments)
        assert not (share / "inbox" / "x").exists()


class TestLooking:
    def test_a_batch_with_its_failed_tasks_and_how_old_that_is(self, share):
        found = call(share, "batch_status", batch=BATCH)
        assert found["batch"]["state"] == "failed"
        assert [(t["name"], t["state"]) for t in found["tasks_of_note"]] == [("count", "dead")]
        assert found["news"]["fresh"] is True
        sign(share, 1e9)
        news = call(share, "batch_status")["news"]
        assert news["fresh"] is False
        assert "old" in news["says"]

    def test_a_log_is_data(self, share):
        found = call(share, "task_log", task=f"{BATCH}/count")
        assert found["text"] == "ZeroDivisionError\x1b[31m\n"
        assert "not instructions" in found["note"]
        assert call(share, "task_log", task=f"{BATCH}/count", last_bytes=3)["text"] == "1m\n"
        assert "error" in call(share, "task_log", task=f"{BATCH}/count", attempt=9)
        assert "error" in call(share, "task_log", task=f"{BATCH}/count", last_bytes=10**9)

    def test_results_are_read_in_parts_and_never_outside_of_the_batch(self, share, tmp_path):
        place = share / "plans" / "census" / "batches" / BATCH
        (place / "out.txt").write_text("0123456789")
        (tmp_path / "secret").write_text("hush")
        (place / "leak").symlink_to(tmp_path / "secret")
        (place / "away").symlink_to(tmp_path)
        os.mkfifo(place / "fifo")
        found = call(share, "read_result", of=BATCH)
        assert "out.txt" in found["files"]
        part = call(share, "read_result", of=BATCH, path="out.txt", offset=2, max_bytes=3)
        assert (part["text"], part["next_offset"]) == ("234", 5)
        for path in (
            "leak",
            "away/secret",
            "../../plan.md",
            "/etc/passwd",
            "fifo",
            "logs",
            "nothing",
            "a\0b",
        ):
            assert call(share, "read_result", of=BATCH, path=path)["error"].startswith(
                ("NotFound", "ConfigError")
            )
        assert "hush" not in json.dumps(call(share, "read_result", of=f"{BATCH}/count"))

    def test_a_link_below_a_batch_is_not_followed_even_inside_of_the_share(self, share):
        place = share / "plans" / "census" / "batches" / BATCH
        (place / "up").symlink_to("../..")
        assert "link" in call(share, "read_result", of=BATCH, path="up/plan.md")["error"]

    def test_no_answer_is_larger_than_a_client_can_read(self, share):
        (file,) = (share / "tasks" / "failed").glob("*.json")
        fields = json.loads(file.read_bytes())
        put(file, {**fields, "result": {"output": "x" * 3_000_000, "error": "y" * 100_000}})
        part = call(share, "read_result", of=f"{BATCH}/count")
        assert len(part["result_json"]) == READ_BYTES and part["next_offset"] == READ_BYTES
        rest = call(share, "read_result", of=f"{BATCH}/count", offset=part["characters"] - 5)
        assert rest["result_json"].endswith('"}') and rest["next_offset"] is None
        assert len(json.dumps(call(share, "batch_status", batch=BATCH))) < MAX_READ
        for log in (share / "plans" / "census" / "batches" / BATCH / "logs").iterdir():
            log.unlink()
        log = call(share, "task_log", task=f"{BATCH}/count", last_bytes=7)
        assert log["text"] == "x" * 7
        for bad in (0, -1, 10**9):
            assert "last_bytes" in call(share, "task_log", task=f"{BATCH}/count", last_bytes=bad)["error"]

    def test_evidence_is_bounded_and_that_of_one_escalation_can_be_had_alone(self, share):
        ids = [f"20261121_08{n:02d}00_0000aaaa" for n in range(20)]
        for id_ in ids:
            escalate(share, id_, attempts=[{"attempt": n, "error": "z" * 7000} for n in range(20)])
        found = call(share, "list_escalations")
        with_it = [one["id"] for one in found["open"] if one["evidence"] is not None]
        assert [one["id"] for one in found["open"]] == ids and 0 < len(with_it) < 20
        assert len(json.dumps(found)) < 2 * MAX_READ
        (alone,) = call(share, "list_escalations", escalation=ids[-1])["open"]
        assert len(alone["evidence"]["attempts"]) == 20

    def test_what_is_no_unicode_is_told_all_the_same(self, share):
        (file,) = (share / "tasks" / "failed").glob("*.json")
        put(file, {**json.loads(file.read_bytes()), "result": {"error": "\udcff \ud800"}})
        assert call(share, "batch_status", batch=BATCH)["tasks_of_note"][0]["error"] == "\\udcff \\ud800"
        os.close(
            os.open(os.fsencode(share / "plans" / "census" / "batches" / BATCH) + b"/\xff", os.O_CREAT, 0o600)
        )
        assert "\\udcff" in call(share, "read_result", of=BATCH)["files"]

    def test_a_tool_that_waits_holds_up_no_other(self, share):
        """A client asks several things at once, and gives one of them up."""

        async def speak(client: Client) -> Any:
            waiting = asyncio.create_task(client.call_tool("cancel", {"id": BATCH}))
            given_up = asyncio.create_task(client.call_tool("retry", {"id": BATCH}))
            requests = share / "inbox" / ".requests"
            while len(list(requests.glob("*.json"))) < 2:
                await client.call_tool("batch_status", {})
            given_up.cancel()
            await client.call_tool("batch_status", {"batch": BATCH})
            assert not waiting.done()
            for file in requests.glob("*.json"):
                put(
                    file.with_name(f"{file.stem}.receipt.json"),
                    {"state": "accepted", "answer": {"cancelled": 1}},
                )
            return (await waiting).content[0].text

        assert json.loads(talk(share, speak, answer_s=60.0))["cancelled"] == 1

    def test_why_asks_the_rig_and_says_when_it_is_off(self, share):
        sign(share, 1e9)
        assert call(share, "why")["error"].startswith("Unreachable: ")

    def test_the_last_summaries_and_the_schemas_are_resources(self, share):
        (share / "plans" / "census" / "batches" / BATCH / "RUN_SUMMARY.md").write_text("# It failed\n")

        async def speak(client: Client) -> tuple[str, str]:
            last = await client.read_resource("rigbus://summaries/last")
            answer = await client.read_resource("rigbus://schemas/rigbus.answer.v1")
            with pytest.raises(MCPError):
                await client.read_resource("rigbus://schemas/nothing")
            return last.contents[0].text, answer.contents[0].text

        summary, schema = talk(share, speak)
        assert "# It failed" in summary
        assert "escalation_id" in json.loads(schema)["properties"]

    def test_a_share_that_is_away_is_a_named_error(self, tmp_path):
        for tool, arguments in (("batch_status", {}), ("list_escalations", {}), ("cancel", {"id": BATCH})):
            assert call(tmp_path / "none", tool, **arguments)["error"].startswith("Unreachable: ")


class TestDoing:
    def test_cancel_and_retry_are_requests_to_the_rig(self, share):
        sign(share, 1e9)
        assert call(share, "cancel", id=BATCH, reason="enough")["state"] == "waits for the rig"
        assert call(share, "retry", id=f"{BATCH}/count")["kind"] == "task"
        asked = [json.loads(f.read_bytes()) for f in (share / "inbox" / ".requests").glob("*.json")]
        assert {one["verb"] for one in asked} == {"cancel", "retry"}
        assert call(share, "cancel", id="nothing")["error"].startswith("NotFound: ")

    def test_what_the_rig_answers_comes_back(self, share):
        def rig(folder=share / "inbox" / ".requests") -> None:
            from helpers import wait_for

            (file,) = wait_for(lambda: list(folder.glob("*.json")), timeout_s=TALK_S)
            receipt = file.with_name(file.name.replace(".json", ".receipt.json"))
            put(receipt, {"state": "accepted", "answer": {"requeued": 1, "revived": 0}})

        thread = threading.Thread(target=rig)
        thread.start()
        assert call(share, "retry", answer_s=TALK_S, id=BATCH)["requeued"] == 1
        thread.join()

    def test_an_answer_is_checked_written_once_and_its_refusal_named(self, share):
        escalate(share)
        wrong = call(share, "answer_escalation", escalation_id=ID, action="patch", files={"../x": "y"})
        assert wrong["error"].startswith("ConfigError: files")
        assert answer_of(share) is None
        with played_rig(share, lambda value: [{"what": "too late"}] if value["action"] == "abandon" else []):
            late = call(share, "answer_escalation", TALK_S, escalation_id=ID, action="abandon")
            assert late["error"] == "Refused: too late"
            patch = {"escalation_id": ID, "action": "patch", "files": {"scripts/count.py": MENDED}}
            assert call(share, "answer_escalation", TALK_S, **patch)["batch_id"] == BATCH
        assert call(share, "answer_escalation", **patch)["error"].startswith("Refused: ")
