"""llama.cpp's HTTP server from the xllamacpp wheel, in a process of its own: `python -m nexus.providers.llama_server`.

It speaks chat completions, responses and Anthropic messages on a unix socket. Started by `nexus.providers.engine`, which
reads one JSON line from its standard output (`{"ready": true}`) and holds its standard input: at end of file it exits, so no
server outlives its parent, however that one died.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TextIO

NICENESS = 5
DEFAULT_TEMPERATURE = 0.2  # a model this small loses its thread at the usual 0.8
DEFAULT_MOST_TOKENS = 512  # where the request names no limit; it could otherwise fill the whole context
DRY_MULTIPLIER, DRY_ALLOWED_LENGTH = 0.8, 6  # it repeats itself for ever without; a quoted phrase stays possible
EXIT_NO_ENGINE = 69


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what llama.cpp prints must not be mistaken for our report
    os.umask(0o077)
    os.nice(NICENESS)
    try:
        import xllamacpp
    except ImportError as error:
        _say(report, {"ready": False, "missing": "xllamacpp", "cause": str(error)})
        return EXIT_NO_ENGINE
    params = xllamacpp.CommonParams()
    params.model.path = str(options.weights)
    params.model_alias = {options.name}
    params.hostnames = [str(options.socket)]  # a name that ends in .sock is a unix socket to llama.cpp
    params.port = 8080
    params.n_ctx = options.context
    params.n_parallel = options.slots
    params.kv_unified = True  # one request alone may use the whole context
    params.cpuparams.n_threads = options.threads
    params.n_threads_http = 4
    params.cache_ram_mib = 0
    params.n_predict = DEFAULT_MOST_TOKENS
    params.sampling.temp = DEFAULT_TEMPERATURE
    params.sampling.dry_multiplier = DRY_MULTIPLIER
    params.sampling.dry_allowed_length = DRY_ALLOWED_LENGTH
    params.ui = False
    params.endpoint_slots = False
    params.warmup = False
    params.offline = True
    params.verbosity = 1
    try:
        server = xllamacpp.Server(params)  # serves from its own threads until it is dropped
    except Exception as error:  # noqa: BLE001 - the library raises plain RuntimeError, and whatever it is goes to the parent
        _say(report, {"ready": False, "cause": f"{type(error).__name__}: {error}"})
        return 1
    _say(report, {"ready": True})
    while os.read(0, 4096):
        pass
    # The library's own shutdown waits for generations in hand, to which nobody listens any more.
    options.socket.unlink(missing_ok=True)
    os._exit(0 if server is not None else 1)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nexus.providers.llama_server", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    return parser.parse_args(arguments)


def _say(report: TextIO, message: dict[str, object]) -> None:
    report.write(json.dumps(message) + "\n")
    report.close()


if __name__ == "__main__":
    sys.exit(main())
