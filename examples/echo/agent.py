"""Gives back what it was sent: for measuring the host, and for trying out requests."""


async def run(input, context):
    return {"input": input, "context": context}
