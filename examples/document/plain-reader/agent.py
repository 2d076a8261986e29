"""Answers questions about a document, and summarises it section by section. Plain Python, no framework.

Give the document once, in `context.document`; the session remembers it. The input is a question, or {"task": "summarise"}.
"""

import passages

from nexus.ai.agents import Agent


class DocumentReader(Agent):
    async def process(self, input):
        document = self.context.get("document") or self.state.get("document")
        if not document:
            raise ValueError('there is no document: send it once as {"context": {"document": "..."}}')
        self.state["document"] = document
        if isinstance(input, dict) and input.get("task") == "summarise":
            answer = self.summarise(document)
        else:
            answer = self.answer(document, str(input))
        async for piece in answer:
            yield piece

    async def answer(self, document: str, question: str):
        passage = passages.best_passage(document, question)
        prompt = f"{passage}\n\nAnswer in one short sentence, using only the text above. {question}"
        async for piece in self.llm.stream(prompt, max_tokens=80, temperature=0):
            yield piece
        yield f'\n(The document says: "{passage}")'

    async def summarise(self, document: str):
        parts = passages.sections(document)
        for done, section in enumerate(parts):
            self.progress(100 * done / len(parts), f"reading: {section.title}")
            prompt = f"{section.text}\n\nSummarise the text above in one short sentence."
            reply = await self.llm.generate(prompt, max_tokens=80, temperature=0)
            yield f"- {section.title}: {reply.strip()}\n"
        self.progress(100, "done")


agent = DocumentReader()
