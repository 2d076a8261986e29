"""LangGraph's own conformance suite for checkpointers, on the platform's saver. Arguments: the door's socket, its token, and
`recalls` for the saver of a session's only worker."""

import asyncio
import json
import sys

from langgraph.checkpoint.conformance import checkpointer_test, validate

from nexus.worker import door
from nexus.worker.adapters import langgraph_recall, langgraph_saver


@checkpointer_test(name="DoorSaver")
async def saver():
    recall = langgraph_recall.Recall() if "recalls" in sys.argv else None
    if recall is not None:
        recall.enter()
    yield langgraph_saver.saver_class()(door.Door(sys.argv[1], sys.argv[2]), recall=recall)


async def main() -> None:
    report = await validate(saver)
    results = {
        name: {"passed": found.tests_passed, "failed": found.tests_failed, "failures": found.failures}
        for name, found in report.results.items()
        if found.detected
    }
    print(json.dumps(results))


asyncio.run(main())
