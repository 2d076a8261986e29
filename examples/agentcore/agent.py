"""Rewrites texts in plain language: an app written for Amazon Bedrock AgentCore's contract, unchanged.

A text streams back at once. {"prompt": "...", "later": true} is answered at once and done in the background, while `/ping` says
HealthyBusy; {"result": true} asks for it in the same session. A WebSocket (`/ws`) rewrites one message after the other.
"""

import asyncio
import os

from bedrock_agentcore import BedrockAgentCoreApp
from openai import AsyncOpenAI

app = BedrockAgentCoreApp()
results: dict[str, str] = {}
working: set[asyncio.Task] = set()


async def rewritten(text: str):
    prompt = f"Rewrite this in plain language, with short sentences and no jargon:\n{text}"
    messages = [{"role": "user", "content": prompt}]
    async with AsyncOpenAI() as client:  # one for each call: AgentCore runs entry points and WebSockets in loops of their own
        stream = await client.chat.completions.create(
            model=os.environ.get("NEXUS_MODEL", "default"), messages=messages, stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


@app.async_task
async def rewrite_later(session: str, text: str):
    results[session] = "".join([piece async for piece in rewritten(text)])


@app.entrypoint
async def rewrite(payload, context):
    if payload.get("result"):
        yield results.pop(context.session_id, "not yet")
    elif payload.get("later"):
        task = asyncio.create_task(rewrite_later(context.session_id, payload["prompt"]))
        working.add(task)
        task.add_done_callback(working.discard)
        yield "It is being rewritten."
    else:
        async for piece in rewritten(payload["prompt"]):
            yield piece


@app.websocket
async def talk(websocket, context):
    await websocket.accept()
    async for text in websocket.iter_text():
        async for piece in rewritten(text):
            await websocket.send_text(piece)
        await websocket.send_json({"done": True})


if __name__ == "__main__":
    app.run()
