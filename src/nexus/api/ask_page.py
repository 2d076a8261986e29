"""The short page on which a person answers a task's question: plain HTML, no script, nothing from elsewhere. Pure."""

import html
import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from nexus.core import errors
from nexus.wire import views

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
_STYLE = (
    "body{font:1.05rem/1.5 system-ui,sans-serif;max-width:40rem;margin:10vh auto;padding:0 1.2rem;color:#1c1c1e;background:#fff}"
    "h1{font-size:1.25rem;white-space:pre-wrap;overflow-wrap:anywhere}p{color:#555}"
    "button{font:inherit;padding:.5rem 1.2rem;margin:.3rem .5rem .3rem 0;border:1px solid #888;border-radius:.4rem}"
    "textarea{font:inherit;width:100%;box-sizing:border-box;min-height:7rem;margin:.5rem 0}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#161618}p{color:#aaa}"
    "button,textarea{color:#eee;background:#2a2a2d}}"
)


def form(ask: views.AskView) -> Response:
    """The question with a way to answer it, or how it was settled."""
    if ask.status != "open":
        word = "This question has been answered already." if ask.status == "answered" else "It is too late to answer this."
        return _page(ask.question, f"<p>{word}</p>", status=410)
    asked_by = f"<p>Agent {html.escape(ask.agent)} waits for your answer.</p>"
    if ask.choices is not None:
        buttons = "".join(
            f'<button name="choice" value="{number}">{html.escape(_shown(choice))}</button>'
            for number, choice in enumerate(ask.choices)
        )
        return _page(ask.question, f'{asked_by}<form method="post">{buttons}</form>')
    if (ask.answer_schema or {}).get("type") == "boolean":
        both = '<button name="json" value="true">Yes</button><button name="json" value="false">No</button>'
        return _page(ask.question, f'{asked_by}<form method="post">{both}</form>')
    field = "text" if _is_text(ask) else "json"
    hint = "" if field == "text" else "<p>The answer is JSON.</p>"
    box = f'<textarea name="{field}" required autofocus aria-label="Answer"></textarea>'
    return _page(ask.question, f'{asked_by}{hint}<form method="post">{box}<br><button>Answer</button></form>')


def read_form(ask: views.AskView, fields: Mapping[str, str]) -> Any:
    """The answer that a sent form means. Raises `Invalid` (`ask.invalid_answer`)."""
    try:
        if ask.choices is not None and "choice" in fields:
            return ask.choices[int(fields["choice"])] if fields["choice"].isdecimal() else None
        if "text" in fields:
            return fields["text"].replace("\r\n", "\n")
        return json.loads(fields["json"])
    except (ValueError, KeyError, IndexError, RecursionError):
        raise errors.Invalid(
            "this is not an answer", code="ask.invalid_answer", next_step="choose one of those shown, or write JSON"
        ) from None


def thanks(ask: views.AskView) -> Response:
    return _page(ask.question, f"<p>Thank you. The answer was: {html.escape(_shown(ask.answer))}</p>")


def refusal(error: errors.NexusError, *, status: int) -> Response:
    more = " ".join(filter(None, (error.cause, error.next_step)))
    return _page(error.message, f"<p>{html.escape(more)}</p>", status=status)


def _page(title: str, inner: str, *, status: int = 200) -> Response:
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title[:80])}</title><style>{_STYLE}</style><main><h1>{html.escape(title)}</h1>{inner}</main></html>"
    )
    return Response(text, status_code=status, media_type="text/html", headers=dict(HEADERS))


def _is_text(ask: views.AskView) -> bool:
    return ask.answer_schema is None or ask.answer_schema.get("type") == "string"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
