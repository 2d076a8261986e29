"""Durable tasks: accepted means done, whatever dies. `service` takes and tells, `dispatcher` runs, `webhooks` delivers."""
