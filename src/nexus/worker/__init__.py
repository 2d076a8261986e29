"""The program in the box: loads an author's code and serves its runs. Imports the standard library, uvicorn and
(when tracing) opentelemetry, nothing else, so it fits beside every framework. `bundle` is the host's side of it."""
