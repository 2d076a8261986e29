"""The models door: whose credential goes where, which model answers, and what is counted."""

import json

import pytest

REPLY = {"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}


@pytest.fixture(scope="module")
def door(node, small):
    """The shared node, with a provider `p` over TCP and one over a unix socket, each speaking as its deed says."""
    port = small.free_port()
    provider = small.SmallServer(address=f"tcp:127.0.0.1:{port}", name="provider")
    provider.does["echo"] = reply(small, REPLY)
    node.stage.run(provider.start())
    node.workers.append(provider)
    local = node.worker("local")
    local.does["echo"] = reply(small, REPLY)
    remote = {
        "provider": "remote", "base_url": f"http://127.0.0.1:{port}/prefix/v1", "headers": {"Authorization": "Bearer sk-host"},
        "upstream_model": "real-name", "dialects": ["openai", "anthropic"],
    }  # fmt: skip
    unix = {"provider": "local", "base_url": local.address, "headers": {}, "upstream_model": "smol", "dialects": ["openai"]}
    settings = {**node.control.entries["settings"], "default_model": "smol"}
    gone = {**unix, "provider": "gone", "base_url": "unix:/nowhere.sock"}
    family = {**remote, "upstream_model": "claude-*"}
    entries = {"model/big": remote, "model/claude-*": family, "model/smol": unix, "model/gone": gone, "settings": settings}
    node.control.change(entries)
    node.settled()
    node.provider, node.local = provider, local
    return node


def reply(small, value, status="200 OK"):
    async def deed(server, request, reader, writer):
        writer.write(small.plain(json.dumps(value).encode(), "Set-Cookie: a=b", "openai-organization: org", status=status))
        await writer.drain()
        return True

    return deed


def stream(*events, gate=None):
    async def deed(server, request, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, event in enumerate(events):
            if gate and number == 1:
                await server.gate(gate).wait()
            data = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
            for part in (data[:7], data[7:]):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    return deed


def emptied(worker):
    while not worker.seen.empty():
        worker.seen.get_nowait()
    return worker


def chat(node, run, **fields):
    body = {"model": "big", "messages": [{"role": "user", "content": "hello"}], **fields}
    path = fields.pop("path", "/v1/chat/completions")
    body.pop("path", None)
    return node.door(0, "POST", path, body, key=node.token, headers={"Nexus-Run-Id": run, "x-do": fields.pop("do", "echo")})


def test_a_name_that_fits_a_pattern_goes_to_that_provider_under_its_own_name(door):
    emptied(door.provider)
    assert chat(door, "run_pattern", model="claude-next").status == 200
    assert json.loads(door.provider.seen.get_nowait().body)["model"] == "claude-next"


def test_default_is_the_hosts_word_also_where_a_provider_takes_every_name(door):
    door.control.change({"model/*": {**door.control.entries["model/big"], "upstream_model": "*"}})
    door.settled()
    emptied(door.local)
    try:
        assert chat(door, "run_default", model="default").status == 200
        assert json.loads(door.local.seen.get(timeout=5).body)["model"] == "smol"
    finally:
        door.control.change({}, ("model/*",))
        door.settled()


def test_a_call_that_leads_nowhere_is_recorded_with_what_it_asked_for(door):
    door.control.change({"stop/acme/hello": {"reason": "enough", "since": 1.0}})
    door.settled()
    try:
        assert chat(door, "run_stopped").status == 403
    finally:
        door.control.change({}, ("stop/acme/hello",))
        door.settled()
    record = door.control.next_record(kind="model", run_id="run_stopped")
    assert (record["outcome"], record["requested"], record["model"], record["provider"]) == ("refused", "big", "", "")
    assert (record["code"], record["input_tokens"]) == ("model.stopped", 0)


def used(node, run):
    return node.door(0, "GET", f"/door/runs/{run}/usage", key=node.token).json


def test_a_call_goes_out_under_the_hosts_credential_and_the_providers_name(door):
    emptied(door.provider)
    answer = chat(door, "run_json")
    seen = door.provider.seen.get(timeout=5)
    assert (answer.status, answer.json) == (200, REPLY)
    assert seen.line == "POST /prefix/v1/chat/completions HTTP/1.1"
    assert seen.all("authorization") == ["Bearer sk-host"]
    assert json.loads(seen.body)["model"] == "real-name"
    assert seen.header("nexus-run-id") is None
    assert door.token not in str(seen)
    assert answer.header("Set-Cookie") is None
    assert answer.header("openai-organization") is None


def test_what_it_used_is_known_to_its_run_and_recorded(door):
    chat(door, "run_used")
    chat(door, "run_used")
    assert used(door, "run_used") == {"input_tokens": 22, "output_tokens": 14, "calls": 2}
    assert used(door, "run_other") == {"input_tokens": 0, "output_tokens": 0, "calls": 0}
    record = door.control.next_record(kind="model", run_id="run_used")
    assert {
        "tenant": "acme", "agent": "hello", "environment": "production", "instance_id": "ins_a", "model": "big",
        "provider": "remote", "input_tokens": 11, "output_tokens": 7, "status": 200,
    }.items() <= record.items()  # fmt: skip


CHUNK = {"choices": [{"delta": {"content": "hi"}}], "usage": None}
LAST = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


def test_a_stream_is_counted_and_the_extra_chunk_kept_back(door):
    door.provider.does["sse"] = stream(CHUNK, CHUNK, LAST, b"data: [DONE]\n\n")
    emptied(door.provider)
    answer = chat(door, "run_sse", stream=True, do="sse")
    assert json.loads(door.provider.seen.get(timeout=5).body)["stream_options"] == {"include_usage": True}
    assert answer.body.count(b'"hi"') == 2
    assert b"prompt_tokens" not in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert used(door, "run_sse") == {"input_tokens": 5, "output_tokens": 3, "calls": 1}


def test_a_client_that_asked_for_the_usage_chunk_gets_it(door):
    door.provider.does["sse"] = stream(CHUNK, LAST, b"data: [DONE]\n\n")
    answer = chat(door, "run_sse2", stream=True, stream_options={"include_usage": True}, do="sse")
    assert b"prompt_tokens" in answer.body
    assert used(door, "run_sse2")["output_tokens"] == 3


def test_a_piece_of_a_stream_arrives_before_the_next_is_made(door):
    door.provider.does["slow"] = stream(CHUNK, CHUNK, b"data: [DONE]\n\n", gate="model-gate")
    body = json.dumps({"model": "big", "stream": True, "messages": []}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {door.key}\r\nx-do: slow\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with door.connect() as client:
        client.sendall(head.encode() + body)
        data = b""
        while b'"hi"' not in data:
            data += client.recv(65536)
        assert b"[DONE]" not in data
        door.open_gate(door.provider, "model-gate")
        while b"[DONE]" not in data:
            data += client.recv(65536)


def test_anthropic_usage_is_counted_from_its_events(door):
    door.provider.does["claude"] = stream(
        {"type": "message_start", "message": {"usage": {"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1}}},
        {"type": "content_block_delta", "delta": {"text": "hi"}},
        {"type": "message_delta", "usage": {"output_tokens": 21}},
        {"type": "message_stop"},
    )
    chat(door, "run_claude", path="/v1/messages", stream=True, do="claude")
    assert used(door, "run_claude") == {"input_tokens": 13, "output_tokens": 21, "calls": 1}


def test_responses_usage_is_counted_from_its_last_event(door):
    door.provider.does["resp"] = stream(
        {"type": "response.completed", "response": {"usage": {"input_tokens": 2, "output_tokens": 6}}}
    )
    chat(door, "run_resp", path="/v1/responses", stream=True, do="resp")
    assert used(door, "run_resp") == {"input_tokens": 2, "output_tokens": 6, "calls": 1}


def test_without_a_word_from_the_provider_it_is_estimated_and_marked(door, small):
    door.provider.does["mute"] = reply(small, {"choices": [{"message": {"content": "x" * 400}}]})
    chat(door, "run_mute", do="mute")
    value = used(door, "run_mute")
    assert value["estimated"] is True
    assert value["output_tokens"] > 50
    assert door.control.next_record(kind="model", run_id="run_mute")["estimated"] is True


def test_unknown_and_default_names_lead_to_the_default_model(door):
    emptied(door.local)
    assert chat(door, "run_d", model="default").status == 200
    assert chat(door, "run_d", model="gpt-nonsense").status == 200
    seen = door.local.seen.get(timeout=5)
    assert seen.line == "POST /v1/chat/completions HTTP/1.1"
    assert json.loads(seen.body)["model"] == "smol"


def test_a_provider_that_refuses_our_credential_is_not_the_callers_401(door, small):
    door.provider.does["deny"] = reply(small, {"error": "bad key"}, status="401 Unauthorized")
    answer = chat(door, "run_deny", do="deny")
    assert (answer.status, answer.json["code"]) == (502, "model.credential_refused")


def test_a_providers_own_error_is_passed_on(door, small):
    door.provider.does["busy"] = reply(small, {"error": "slow down"}, status="429 Too Many Requests")
    answer = chat(door, "run_busy", do="busy")
    assert (answer.status, answer.json) == (429, {"error": "slow down"})
    assert used(door, "run_busy") == {"input_tokens": 0, "output_tokens": 0, "calls": 1}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "body.invalid_json"),
        (b"{", 400, "body.invalid_json"),
        (b"[]", 400, "body.not_an_object"),
        (b'{"model": NaN}', 400, "body.invalid_json"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "body.too_deep"),
        (b'{"model": 7}', 400, "model.invalid"),
        (b'{"model": "gone"}', 503, "model.unreachable"),
        (b'{"n": ' + b"9" * 10_000 + b"}", 400, "body.invalid_json"),
        (b"\xff\xfe", 400, "body.invalid_json"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', 413, "body.too_large"),
    ],
)
def test_bad_calls_get_a_clear_error(door, body, status, code):
    answer = door.ask("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_a_lone_surrogate_passes(door):
    assert door.ask("POST", "/v1/chat/completions", b'{"model": "big", "messages": ["\\ud800"]}').status == 200


def test_a_dialect_the_provider_does_not_speak(door):
    answer = door.ask("POST", "/v1/messages", {"model": "smol", "messages": []})
    assert (answer.status, answer.json["code"]) == (400, "model.dialect_unsupported")


def test_the_list_of_models(door):
    value = door.ask("GET", "/v1/models").json
    assert [item["id"] for item in value["data"]] == ["big", "gone", "smol"]
    assert door.ask("GET", "/v1/models/big").json["owned_by"] == "remote"
    assert door.ask("GET", "/v1/models/nope").status == 404
    assert "sk-host" not in json.dumps(value)


def test_a_caller_who_leaves_cancels_the_model(door, small):
    door.provider.does["hang"] = small.hang
    emptied(door.provider)
    body = b'{"model": "big"}'
    with door.connect() as client:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {door.key}\r\nx-do: hang\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        door.provider.seen.get(timeout=5)
    door.provider.closed.get(timeout=5)


def test_instance_tokens_open_only_their_doors(door):
    assert door.door(0, "POST", "/door/traces", b"{}", key=door.token).status == 200
    assert door.door(0, "GET", "/v1/agents", key=door.token).status == 403
    assert door.door(0, "GET", "/door/runs/x/usage", key=door.key).status == 403
    assert door.ask("POST", "/v1/chat/completions", {"model": "big"}, key=door.token).status == 401


def test_a_body_in_tiny_chunks_weighs_no_more_than_its_bytes(door):
    """Four hundred thousand chunks of two bytes: as a list of parts they would weigh seventeen megabytes."""
    before = highest_mib(door.processes[0].pid)
    text = b'{"model": "big", "messages": ["' + b"x" * 800_000
    parts = [text[place : place + 2] for place in range(0, len(text), 2)]
    with door.connect() as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {door.key}\r\nTransfer-Encoding: chunked\r\n"
        client.sendall(head.encode() + b"Connection: close\r\n\r\n")
        client.sendall(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts))
        client.sendall(b'3\r\n"]}\r\n0\r\n\r\n')
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert highest_mib(door.processes[0].pid) < before + 12


def highest_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
