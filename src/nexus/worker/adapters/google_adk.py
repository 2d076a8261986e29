"""Google ADK: an agent (`BaseAgent`, or any node) or an `App`, run by the ADK `Runner` with the platform as its session service.

The session (events and state) is kept as JSON in the platform's session state. Source: https://google.github.io/adk-docs/runtime/.
"""

import contextlib
import importlib
import re
from typing import Any

from nexus.worker import runs, tool_spans
from nexus.worker.adapters import contract, prompts, tell, versions

_AGENTS = ("google.adk.agents.base_agent.BaseAgent", "google.adk.workflow._base_node.BaseNode")
_APP = "google.adk.apps.app.App"
_KEY = "google-adk"


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and any(name in (*_AGENTS, _APP) for name in names)


def adapt(target: Any) -> "AdkAdapter":
    return AdkAdapter(target)


class AdkAdapter:
    """One `Runner` for each run, because a session service belongs to it; artifacts and memory live as long as the process."""

    name = "google-adk"
    uses_state = True

    def __init__(self, target: Any) -> None:
        versions.check("google-adk", tried="2.13")
        tool_spans.leave_to_framework()
        self._runners = importlib.import_module("google.adk.runners")
        self._types = importlib.import_module("google.genai.types")
        self._sessions = importlib.import_module("google.adk.sessions")
        self._config = importlib.import_module("google.adk.agents.run_config")
        self._artifacts = importlib.import_module("google.adk.artifacts").InMemoryArtifactService()
        self._memory = importlib.import_module("google.adk.memory").InMemoryMemoryService()
        is_app = _APP in contract.type_names(target)
        self._app_name = target.name if is_app else "app_" + re.sub(r"\W", "_", str(getattr(target, "name", "agent")))
        self._given: dict[str, Any] = {"app": target} if is_app else {"agent": target, "app_name": self._app_name}
        if type(getattr(target, "model", None)).__name__ == "LiteLlm":
            importlib.import_module("litellm")  # seconds, which would otherwise be the first run's
        self._service_class = _session_service(importlib.import_module("google.adk.sessions.base_session_service"))

    async def run(self, run: runs.Run) -> Any:
        user = str(run.context.get("user_id") or "user")
        service = self._service_class(self._session(run, user))
        runner = self._runners.Runner(
            **self._given, session_service=service, artifact_service=self._artifacts, memory_service=self._memory
        )
        mode = self._config.StreamingMode.SSE if run.streaming else self._config.StreamingMode.NONE
        message = self._types.Content(role="user", parts=[self._types.Part(text=prompts.text_of(run.call.input))])
        reader = _Reader(run)
        arguments = {"user_id": user, "session_id": run.session_id, "new_message": message}
        events = runner.run_async(**arguments, run_config=self._config.RunConfig(streaming_mode=mode))
        async with contextlib.aclosing(events):
            async for event in events:
                reader.take(event)
                await run.room()
        run.state[_KEY] = service.session.model_dump(mode="json", by_alias=True, exclude_none=True)
        return reader.output

    def _session(self, run: runs.Run, user: str) -> Any:
        kept = run.state.get(_KEY)
        if isinstance(kept, dict):
            session = self._sessions.Session.model_validate(kept)
            session.user_id, session.app_name = user, self._app_name
        else:
            session = self._sessions.Session(id=run.session_id, app_name=self._app_name, user_id=user)
        session.state.update(run.context.get("state") or {})
        return session


class _Reader:
    """Events in, our events and the last answer out. ADK sends a whole text after its pieces; it is told only once."""

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        self._told = False
        self._author = ""
        self.output: Any = None

    def take(self, event: Any) -> None:
        run = self._run
        if event.author and event.author not in (self._author, "user"):
            self._author = event.author
            tell.step(run, event.author)
        text = _text(event)
        if getattr(event, "partial", False):
            self._told = tell.delta(run, text) or self._told
            return
        for call in event.get_function_calls():
            tell.tool_call(run, id=call.id, name=call.name, arguments=call.args)
        for answer in event.get_function_responses():
            tell.tool_result(run, id=answer.id, name=answer.name, output=answer.response)
        if text:
            if not self._told:
                tell.delta(run, text)
            self._told = False
        if (usage := event.usage_metadata) is not None:
            thoughts = getattr(usage, "thoughts_token_count", None) or 0
            tell.used(run, usage.prompt_token_count, (usage.candidates_token_count or 0) + thoughts)
        if event.is_final_response() and text:
            self.output = text
        if (output := getattr(event, "output", None)) is not None:
            self.output = output


def _text(event: Any) -> str:
    parts = event.content.parts if event.content is not None and event.content.parts else ()
    return "".join(part.text for part in parts if part.text and not getattr(part, "thought", False))


def _session_service(base: Any) -> Any:
    class RunSessions(base.BaseSessionService):  # type: ignore[misc]
        """The one session of the run in hand; another id is a new session that is forgotten with the run."""

        def __init__(self, session: Any) -> None:
            self.session = session
            self._others: dict[str, Any] = {}

        async def create_session(
            self, *, app_name: str, user_id: str, state: dict[str, Any] | None = None, session_id: str | None = None
        ) -> Any:
            found = type(self.session)(
                id=session_id or f"{self.session.id}-{len(self._others) + 1}",
                app_name=app_name,
                user_id=user_id,
                state=state or {},
            )
            self._others[found.id] = found
            return found

        async def get_session(self, *, app_name: str, user_id: str, session_id: str, config: Any = None) -> Any:
            found = self.session if session_id == self.session.id else self._others.get(session_id)
            recent = getattr(config, "num_recent_events", None)
            if found is None or recent is None:
                return found
            return found.model_copy(update={"events": found.events[len(found.events) - recent :] if recent else []})

        async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> Any:
            return base.ListSessionsResponse(sessions=[self.session, *self._others.values()])

        async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
            self._others.pop(session_id, None)

    return RunSessions
