"""Apps for Azure AI Foundry's hosting contract (`ResponsesAgentServerHost`, `InvocationAgentServerHost`), in the process.

What the session said is given back as the history of the previous response. It is kept by the platform, unless the app brings a
store of its own. Source: https://pypi.org/project/azure-ai-agentserver-responses/ (protocol 2.0.0).
"""

from collections.abc import Iterable
from typing import Any
from urllib import parse

from nexus.worker import outputs, runs
from nexus.worker.adapters import asgi, prompts, versions

_HOST = "azure.ai.agentserver.core._base.AgentServerHost"
_LOCAL_STORES = ("FileResponseStore", "InMemoryResponseProvider")
_KEY = "foundry"
_MOST = 200


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _HOST in names


def adapt(target: Any) -> "FoundryAdapter":
    versions.check("azure-ai-agentserver-core", tried="2.2")
    return FoundryAdapter(target, name="foundry")


class FoundryAdapter(asgi.AsgiAdapter):
    uses_state = True

    def __init__(self, app: Any, *, name: str) -> None:
        super().__init__(app, name=name)
        self._history: History | None = None
        if self._path == "/responses":
            self._history = _install(app)

    async def run(self, run: runs.Run) -> Any:
        if self._path != "/responses":
            return await super().run(run)
        kept = run.state.get(_KEY) or {}
        body = self._body(run)
        if previous := kept.get("last"):
            body["previous_response_id"] = previous
        past = outputs.plain(kept.get("items") or [])
        if self._history is not None:
            body["store"] = False
            self._history.pasts[run.session_id] = (previous, past)
        try:
            answer = await self._post(run, body)
            output = answer.output()
        finally:
            if self._history is not None:
                self._history.pasts.pop(run.session_id, None)
        if (response := answer.reader.response) is not None:
            items = [*past, *_said(body["input"], len(past)), *response.get("output", ())] if self._history is not None else []
            run.state[_KEY] = {"last": response["id"], "items": outputs.plain(items[-_MOST:])}
        return output

    def _body(self, run: runs.Run) -> dict[str, Any]:
        given = super()._body(run)
        if self._path == "/responses":
            body = dict(given) if "input" in given else {"input": prompts.text_of(given)}
            return body | {"stream": run.streaming}
        return dict(given)

    def _query(self, run: runs.Run) -> str:
        return "" if self._path == "/responses" else f"agent_session_id={parse.quote(run.session_id, safe='')}"

    def _headers(self, run: runs.Run) -> dict[str, str]:
        headers = super()._headers(run) | {"x-request-id": run.run_id}
        user = run.context.get("user_id")
        return headers | {"x-agent-user-id": user} if isinstance(user, str) and user.isascii() and user.isprintable() else headers


class History:
    """The app's response store with the past of the sessions in hand laid over it: `pasts` by session."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.pasts: dict[str, tuple[str | None, list[dict[str, Any]]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get_history_item_ids(
        self, previous_response_id: str | None, conversation_id: str | None, limit: int, *, context: Any = None
    ) -> list[str]:
        for previous, items in self.pasts.values():
            if previous is not None and previous == previous_response_id:
                ids = [item["id"] for item in items]
                return ids if limit < 0 else ids[len(ids) - min(limit, len(ids)) :]
        found: list[str] = await self._store.get_history_item_ids(previous_response_id, conversation_id, limit, context=context)
        return found

    async def get_items(self, item_ids: Iterable[str], *, context: Any = None) -> list[Any]:
        wanted = list(item_ids)
        known = {item["id"]: item for _, items in self.pasts.values() for item in items}
        missing = [id for id in wanted if id not in known]
        stored = dict(zip(missing, await self._store.get_items(missing, context=context), strict=True)) if missing else {}
        return [known.get(id, stored.get(id)) for id in wanted]


def _install(app: Any) -> History | None:
    """Lay the history over a store that lives with the process; None where the app has one that lives longer."""
    parts = [part for part in (getattr(app, "_endpoint", None), getattr(app, "_orchestrator", None)) if part is not None]
    store = next((getattr(part, "_provider", None) for part in parts), None)
    if type(store).__name__ not in _LOCAL_STORES:
        return None
    history = History(store)
    for part in parts:
        part._provider = history
    return history


def _said(given: Any, at: int) -> list[dict[str, Any]]:
    """The input as items of a history."""
    messages = given if isinstance(given, list) else [{"role": "user", "content": given}]
    found = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            continue
        content = message.get("content")
        parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
        found.append({"type": "message", "status": "completed", **message, "id": f"msg_{at + number}", "content": parts})
    return found
