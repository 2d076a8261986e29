"""The chain, what becomes a record, and what is taken out of content, without a database."""

import json

import pytest

from nexus.audit import anchors, chain, entries, redaction

KEY = b"k" * 32


def build(texts, tenant="acme"):
    sealer, at, rows = chain.Sealer(KEY, tenant), chain.Link(), []
    for text in texts:
        rows.append(sealer.next(at, text))
        at = chain.Link(rows[-1].seq, rows[-1].hash)
    return sealer, rows, sealer.ends(chain.Link(), at)


def judge(sealer, rows, ends, anchor=None, anchored=None):
    verifier = chain.Verifier(sealer, ends)
    return verifier.begin() or verifier.feed(rows) or verifier.finish(anchor, anchored)


def test_an_untouched_chain_is_intact():
    sealer, rows, ends = build(["one", "two", "three"])
    assert judge(sealer, rows, ends) is None
    assert judge(sealer, rows, ends, chain.Link(2, rows[1].hash), rows[1].hash) is None


def resealed(sealer, rows, at, text):
    """What somebody does who can write to the database, and knows how hashes are made but not the key."""
    before = chain.Link(at, rows[at - 1].hash if at else chain.GENESIS)
    made = []
    for row in [chain.Row(seq=0, text=text, hash=b"", seal=b""), *rows[at + 1 :]]:
        hash_ = chain.hash_record(before, sealer.tenant, row.text)
        made.append(chain.Row(seq=before.seq + 1, text=row.text, hash=hash_, seal=rows[before.seq].seal))
        before = chain.Link(before.seq + 1, hash_)
    return [*rows[:at], *made]


@pytest.mark.parametrize(
    ("change", "seq", "what"),
    [
        (lambda s, r: [r[0], chain.Row(seq=2, text="TWO", hash=r[1].hash, seal=r[1].seal), r[2]], 2, "the record was altered"),
        (lambda s, r: resealed(s, r, 1, "TWO"), 2, "the record was altered"),
        (lambda s, r: [r[0], r[2]], 2, "record 2 was removed"),
        (lambda s, r: r[2:], 1, "records 1 to 2 were removed"),
        (lambda s, r: r[:1], 2, "records 2 to 3 were removed"),
        (lambda s, r: [*r, s.next(chain.Link(3, r[2].hash), "four")], 4, "a record was added behind the chain's end"),
        (lambda s, r: [r[1], r[0], r[2]], 1, "record 1 was removed"),
    ],
)
def test_the_first_touched_record_is_named(change, seq, what):
    sealer, rows, ends = build(["one", "two", "three"])
    fault = judge(sealer, change(sealer, rows), ends)
    assert (fault.seq, fault.what) == (seq, what)


def test_ends_that_were_moved_are_found_out():
    sealer, rows, ends = build(["one", "two", "three"])
    shorter = chain.Ends(floor=ends.floor, floor_seal=ends.floor_seal, head=chain.Link(2, rows[1].hash), head_seal=rows[1].seal)
    assert judge(sealer, rows[:2], shorter).what == "the chain's end was altered"
    later = chain.Ends(floor=chain.Link(1, rows[0].hash), floor_seal=b"?", head=ends.head, head_seal=ends.head_seal)
    assert judge(sealer, rows[1:], later).what == "the chain's beginning was altered"


def test_a_chain_put_back_to_an_earlier_state_is_found_out_by_its_anchor():
    sealer, rows, _ = build(["one", "two", "three"])
    _, _, earlier = build(["one", "two"])
    assert "put back" in judge(sealer, rows[:2], earlier, chain.Link(3, rows[2].hash)).what
    _, others, rewritten = build(["one", "zwei", "drei"])
    fault = judge(sealer, others, rewritten, chain.Link(3, rows[2].hash), others[2].hash)
    assert "anew" in fault.what


def test_another_tenants_records_do_not_fit():
    _, rows, ends = build(["one"], tenant="other")
    sealer = chain.Sealer(KEY, "acme")
    assert judge(sealer, rows, sealer.ends(ends.floor, ends.head)).what == "the record was altered"


def test_an_export_can_be_followed_without_the_key():
    _, rows, _ = build(["one", "two", "three"])
    before = [chain.GENESIS, *(row.hash for row in rows)]
    lines = [
        chain.Exported(seq=row.seq, tenant="acme", text=row.text, previous=previous, hash=row.hash)
        for row, previous in zip(rows, before, strict=False)
    ]
    assert chain.follow(lines) == (chain.Link(3, rows[2].hash), 3, None)
    assert chain.follow([lines[0], lines[2]])[2].what == "records 2 to 2 were removed"
    assert chain.follow([lines[0], lines[2]], whole=False)[2] is None
    forged = chain.Exported(seq=2, tenant="acme", text="TWO", previous=rows[0].hash, hash=rows[1].hash)
    assert chain.follow([lines[0], forged, lines[2]])[2].seq == 2


def test_anchors_survive_a_restart_and_an_altered_file_is_not_used(tmp_path, caplog):
    path = tmp_path / "audit" / "anchors"
    one = anchors.Anchors(path, KEY)
    one.note("acme", chain.Link(7, b"h" * 32))
    one.save()
    assert path.stat().st_mode & 0o777 == 0o600
    again = anchors.Anchors(path, KEY)
    again.load()
    assert again.find("acme") == chain.Link(7, b"h" * 32)
    path.write_text(path.read_text().replace("[7,", "[3,"))
    wrong = anchors.Anchors(path, KEY)
    wrong.load()
    assert wrong.find("acme") is None
    assert "cannot be used" in caplog.text


REPORT = {
    "kind": "model",
    "id": "call_1",
    "tenant": "acme",
    "agent": "hello",
    "model": "gpt-x",
    "input_tokens": 3,
    "started_at": 5.5,
}


def test_a_record_keeps_plain_bounded_fields_only():
    given = {
        **REPORT,
        "code": "x" * 9000,
        "odd name": 1,
        "nested": {"a": 1},
        "bad": float("nan"),
        "huge": 1 << 80,
        "nul": "a\0b\ud800",
    }
    entry = entries.render_entry(given, redaction.Rules())
    kept = json.loads(entry.text)
    assert (entry.id, entry.tenant, entry.at, entry.agent) == ("call_1", "acme", 5.5, "hello")
    assert len(kept["code"]) == 512
    assert kept["nul"] == "ab?"
    assert not {"odd name", "nested", "bad", "huge", "content"} & kept.keys()


@pytest.mark.parametrize(
    "given", [None, 3, [], "model", {"kind": "run", "tenant": "a"}, {"kind": "model"}, {"kind": "model", "tenant": 3}]
)
def test_what_is_no_model_call_is_left_out(given):
    assert entries.render_entry(given, redaction.Rules()) is None


def test_content_is_redacted_and_bound_to_its_record():
    said = {"request": "my key sk-abcdefghij0123456789 and me@example.org", "response": "ok", "more": "no"}
    entry = entries.render_entry({**REPORT, "content": said}, redaction.Rules())
    assert json.loads(entry.content) == {"request": "my key [secret] and [email]", "response": "ok"}
    assert entries.content_hash_of(entry.text) == entries.hash_content(entry.content)
    assert "sk-" not in entry.text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("AKIAABCDEFGHIJKLMNOP", "[secret]"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "Authorization: [secret]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[secret]"),
        (f"a nxk_{'a' * 40} b", "a [secret] b"),
        ("4111 1111 1111 1111", "[card]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("order 12345", "order 12345"),
        ("-----BEGIN RSA PRIVATE KEY-----\\nabcdefghijklmnopqrst\\n-----END", "[secret]-----END"),
    ],
)
def test_secrets_addresses_and_cards_are_taken_out(text, left):
    assert redaction.Rules().redact(text) == left


def test_patterns_of_the_operator_are_used_and_checked():
    assert redaction.Rules([r"PROJ-\d+"]).redact("see PROJ-77") == "see [redacted]"
    with pytest.raises(ValueError, match="not a regular expression"):
        redaction.Rules(["("])
