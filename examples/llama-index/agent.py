"""Sums up a long text part by part: a LlamaIndex workflow of three steps, unchanged. It remembers what the session summed up."""

import os
import textwrap

from openai import AsyncOpenAI
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

client = AsyncOpenAI()


class Part(Event):
    text: str


class Summed(Event):
    text: str


class Progress(Event):
    done: int
    of: int


class Summary(Workflow):
    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        parts = textwrap.wrap(ev.input, 3000)
        await ctx.store.set("parts", len(parts))
        for part in parts:
            ctx.send_event(Part(text=part))

    @step(num_workers=2)
    async def read(self, ctx: Context, ev: Part) -> Summed:
        return Summed(text=await ask(f"Sum this up in two sentences:\n{ev.text}"))

    @step
    async def join(self, ctx: Context, ev: Summed) -> StopEvent | None:
        found = ctx.collect_events(ev, [Summed] * await ctx.store.get("parts"))
        if found is None:
            return None
        ctx.write_event_to_stream(Progress(done=len(found), of=len(found)))
        earlier = await ctx.store.get("summaries", default=[])
        points = "\n".join(part.text for part in found)
        summary = await ask(f"Known already:\n{earlier}\n\nWrite one paragraph of these points:\n{points}")
        await ctx.store.set("summaries", [*earlier, ev.text, summary])
        return StopEvent(result=summary)


async def ask(prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    answer = await client.chat.completions.create(model=os.environ.get("NEXUS_MODEL", "default"), messages=messages)
    return answer.choices[0].message.content


agent = Summary(timeout=300)
