"""`python -m nexus.worker`, for containers that have the package installed."""

from nexus.worker.main import main

main()
