"""Header names between client, gateway and worker. A client may send those of `FROM_CLIENT`; the gateway sets the rest
itself and drops what a client claimed."""

RUN_ID = "Nexus-Run-Id"
SESSION_ID = "Nexus-Session-Id"
ENVIRONMENT = "Nexus-Environment"
TENANT = "Nexus-Tenant"
PRINCIPAL = "Nexus-Principal"
USER_ID = "Nexus-User-Id"
ERROR_CODE = "Nexus-Error-Code"
DEADLINE = "Nexus-Deadline"
ATTEMPT = "Nexus-Attempt"
VERSION = "Nexus-Version"
IDEMPOTENCY_KEY = "Idempotency-Key"
TRACEPARENT = "traceparent"

FROM_CLIENT = (SESSION_ID, ENVIRONMENT, IDEMPOTENCY_KEY, TRACEPARENT)
