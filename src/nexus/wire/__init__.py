"""What crosses a process boundary. `problem`, `feed`, `node` and `runs` use the standard library only, so the box and
the gateway can import them; `views`, `params` and `project` are pydantic models for the API and its clients."""
