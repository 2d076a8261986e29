"""Explains a technical text step by step: an agent written for Azure AI Foundry's hosting contract, unchanged.

`app.run()` starts a server where the file is run by itself; a host that imports it serves the app itself.
"""

import asyncio
import os

from azure.ai.agentserver.responses import CreateResponse, ResponseContext, ResponsesAgentServerHost, TextResponse
from openai import AsyncOpenAI

app = ResponsesAgentServerHost()
client = AsyncOpenAI()
TOLD = "You explain technical texts to newcomers, one short sentence a step. Say which step you explain when you are asked again."


def words(item: dict) -> str:
    parts = item.get("content") or ()
    return parts if isinstance(parts, str) else "".join(part.get("text") or "" for part in parts)


@app.response_handler
async def explain(request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event) -> TextResponse:
    history = [
        {"role": item["role"], "content": words(item)} for item in await context.get_history() if item["type"] == "message"
    ]
    said = {"role": "user", "content": await context.get_input_text()}

    async def text():
        stream = await client.chat.completions.create(
            model=os.environ.get("NEXUS_MODEL", "default"),
            messages=[{"role": "system", "content": TOLD}, *history, said],
            stream=True,
        )
        async with stream:
            async for chunk in stream:
                if cancellation_signal.is_set():
                    return
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    return TextResponse(context, request, text=text())


app.run()
