"""Sorts support tickets and drafts a reply: a FastAPI app as anybody would write it, with a start-up of its own.

A run is one POST to /run with {"input": ..., "context": ...}; what it streams are server-sent events.
"""

import json
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

QUEUES = {"refund": "billing", "invoice": "billing", "password": "accounts", "login": "accounts", "crash": "engineering"}


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.client = AsyncOpenAI()
    yield
    await app.state.client.close()


class Asked(BaseModel):
    input: str
    context: dict = {}


app = FastAPI(title="ticket-desk", lifespan=lifespan)


@app.post("/run")
async def run(asked: Asked) -> StreamingResponse:
    if not asked.input.strip():
        raise HTTPException(422, "the ticket is empty")
    queue = next((queue for word, queue in QUEUES.items() if word in asked.input.lower()), "general")

    async def reply():
        yield event({"queue": queue})
        told = f"Draft a friendly reply of two sentences to this support ticket, signed by the {queue} team:\n{asked.input}"
        stream = await app.state.client.chat.completions.create(
            model=os.environ.get("NEXUS_MODEL", "default"), messages=[{"role": "user", "content": told}], stream=True
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield event(chunk.choices[0].delta.content)

    return StreamingResponse(reply(), media_type="text/event-stream")


@app.get("/queues")
async def queues() -> dict[str, str]:
    return QUEUES


def event(data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"
