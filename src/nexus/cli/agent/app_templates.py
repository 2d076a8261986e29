"""First agents that are apps: any ASGI app, and apps for the contracts of other hosts. `{name}` is the agent's."""

ASGI = '''\
"""{name}: an ASGI app. The host sets OPENAI_BASE_URL and OPENAI_API_KEY; a run is one POST to /run."""

import json
import os

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI

app = FastAPI(title="{name}")
client = AsyncOpenAI()
conversations: dict[str, list] = {}  # as long as this process lives: use a database for more


@app.post("/run")
async def run(asked: dict, request: Request) -> StreamingResponse:
    messages = conversations.setdefault(request.headers["nexus-session-id"], [])
    messages.append({"role": "user", "content": str(asked["input"])})

    async def answer():
        said = ""
        model = os.environ.get("NEXUS_MODEL", "default")
        stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    said += piece
                    yield f"data: {json.dumps(piece)}\\n\\n"
        messages.append({"role": "assistant", "content": said})

    return StreamingResponse(answer(), media_type="text/event-stream")
'''

AGENTCORE = '''\
"""{name}: an app for Amazon Bedrock AgentCore's contract. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import os

from bedrock_agentcore import BedrockAgentCoreApp
from openai import AsyncOpenAI

app = BedrockAgentCoreApp()
client = AsyncOpenAI()
conversations: dict[str, list] = {}  # as long as this process lives: use a database for more


@app.entrypoint
async def answer(payload, context):
    messages = conversations.setdefault(context.session_id, [])
    messages.append({"role": "user", "content": payload["prompt"]})
    said = ""
    model = os.environ.get("NEXUS_MODEL", "default")
    stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
    async with stream:
        async for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                said += piece
                yield piece
    messages.append({"role": "assistant", "content": said})


if __name__ == "__main__":
    app.run()
'''

FOUNDRY = '''\
"""{name}: an app for Azure AI Foundry's hosting contract. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import asyncio
import os

from azure.ai.agentserver.responses import CreateResponse, ResponseContext, ResponsesAgentServerHost, TextResponse
from openai import AsyncOpenAI

app = ResponsesAgentServerHost()
client = AsyncOpenAI()


def message(item: dict) -> dict:
    return {"role": item["role"], "content": "".join(part.get("text") or "" for part in item["content"])}


@app.response_handler
async def answer(request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event) -> TextResponse:
    history = [message(item) for item in await context.get_history() if item["type"] == "message"]
    said = {"role": "user", "content": await context.get_input_text()}

    async def text():
        model = os.environ.get("NEXUS_MODEL", "default")
        stream = await client.chat.completions.create(model=model, messages=[*history, said], stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    return TextResponse(context, request, text=text())


if __name__ == "__main__":
    app.run()
'''
