"""Rewrites a text in plain language: an app written for Amazon Bedrock AgentCore's contract."""

import os

from bedrock_agentcore import BedrockAgentCoreApp
from openai import AsyncOpenAI

app = BedrockAgentCoreApp()
client = AsyncOpenAI()


@app.entrypoint
async def rewrite(payload, context):
    prompt = f"Rewrite this in plain language, with short sentences and no jargon:\n{payload['prompt']}"
    messages = [{"role": "user", "content": prompt}]
    answer = await client.chat.completions.create(model=os.environ.get("NEXUS_MODEL", "default"), messages=messages)
    return answer.choices[0].message.content


if __name__ == "__main__":
    app.run()
