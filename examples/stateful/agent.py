"""Remembers within a session: send two runs with the same Nexus-Session-Id."""

from nexus.ai.agents import Agent


class Notebook(Agent):
    """`note …` keeps a line, anything else reads the notes back."""

    async def process(self, input):
        notes = self.state.setdefault("notes", [])
        text = str(input).strip()
        if text.startswith("note "):
            notes.append(text.removeprefix("note "))
            return f"Noted ({len(notes)} so far)."
        return "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) or "No notes yet."
