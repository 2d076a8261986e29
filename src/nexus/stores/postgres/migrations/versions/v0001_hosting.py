"""Hosting: tenants, keys, agents, versions, deployments and their revisions, instances, events, secrets."""

from alembic import op

revision = "0001_hosting"
down_revision = None

_STATEMENTS = (
    """
    CREATE TABLE idempotency_keys (
      tenant TEXT NOT NULL,
      key TEXT NOT NULL,
      request TEXT NOT NULL,
      answer JSONB NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_idempotency_keys PRIMARY KEY (tenant, key)
    )
    """,
    """
    CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at)
    """,
    """
    CREATE TABLE platform_keys (
      name TEXT NOT NULL,
      sealed BYTEA NOT NULL,
      wrapped_key BYTEA NOT NULL,
      key_id TEXT NOT NULL,
      CONSTRAINT pk_platform_keys PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE tenants (
      name TEXT NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_tenants PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE agents (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      name TEXT NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_agents PRIMARY KEY (id),
      CONSTRAINT uq_agents_tenant_name UNIQUE (tenant, name),
      CONSTRAINT fk_agents_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
    )
    """,
    """
    CREATE TABLE api_keys (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      name TEXT NOT NULL,
      hash TEXT NOT NULL,
      roles TEXT[] NOT NULL,
      environment TEXT,
      agents TEXT[],
      requests_per_minute INTEGER,
      created_at DOUBLE PRECISION NOT NULL,
      expires_at DOUBLE PRECISION,
      revoked_at DOUBLE PRECISION,
      CONSTRAINT pk_api_keys PRIMARY KEY (id),
      CONSTRAINT fk_api_keys_tenant FOREIGN KEY(tenant) REFERENCES tenants (name),
      CONSTRAINT uq_api_keys_hash UNIQUE (hash)
    )
    """,
    """
    CREATE INDEX ix_api_keys_tenant ON api_keys (tenant)
    """,
    """
    CREATE TABLE secrets (
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      name TEXT NOT NULL,
      sealed BYTEA NOT NULL,
      wrapped_key BYTEA NOT NULL,
      key_id TEXT NOT NULL,
      fingerprint TEXT NOT NULL,
      version INTEGER NOT NULL,
      updated_at DOUBLE PRECISION NOT NULL,
      updated_by TEXT NOT NULL,
      CONSTRAINT pk_secrets PRIMARY KEY (tenant, agent, name),
      CONSTRAINT fk_secrets_tenant FOREIGN KEY(tenant) REFERENCES tenants (name)
    )
    """,
    """
    CREATE TABLE deployments (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      target TEXT NOT NULL,
      target_revision INTEGER,
      active_revision INTEGER,
      replicas INTEGER NOT NULL,
      scaling JSONB NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      updated_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_deployments PRIMARY KEY (id),
      CONSTRAINT uq_deployments_tenant_agent_environment UNIQUE (tenant, agent, environment),
      CONSTRAINT fk_deployments_tenant_agent FOREIGN KEY(tenant, agent) REFERENCES agents (tenant, name)
    )
    """,
    """
    CREATE TABLE versions (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      version TEXT NOT NULL,
      digest TEXT NOT NULL,
      entrypoint TEXT NOT NULL,
      size_bytes BIGINT NOT NULL,
      config JSONB NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      created_by TEXT NOT NULL,
      CONSTRAINT pk_versions PRIMARY KEY (id),
      CONSTRAINT uq_versions_tenant_agent_version UNIQUE (tenant, agent, version),
      CONSTRAINT fk_versions_tenant_agent FOREIGN KEY(tenant, agent) REFERENCES agents (tenant, name) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE instances (
      id TEXT NOT NULL,
      deployment_id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      revision INTEGER NOT NULL,
      target TEXT NOT NULL,
      token_hash TEXT NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      ready_at DOUBLE PRECISION,
      CONSTRAINT pk_instances PRIMARY KEY (id),
      CONSTRAINT fk_instances_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE CASCADE,
      CONSTRAINT uq_instances_token_hash UNIQUE (token_hash)
    )
    """,
    """
    CREATE INDEX ix_instances_deployment_id ON instances (deployment_id)
    """,
    """
    CREATE TABLE revisions (
      deployment_id TEXT NOT NULL,
      number INTEGER NOT NULL,
      tenant TEXT NOT NULL,
      version_id TEXT NOT NULL,
      version TEXT NOT NULL,
      phase TEXT NOT NULL,
      reason TEXT NOT NULL,
      replicas INTEGER NOT NULL,
      settings JSONB NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      created_by TEXT NOT NULL,
      ended_at DOUBLE PRECISION,
      problem JSONB,
      CONSTRAINT pk_revisions PRIMARY KEY (deployment_id, number),
      CONSTRAINT fk_revisions_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE rollout_events (
      seq BIGINT GENERATED ALWAYS AS IDENTITY,
      deployment_id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      revision INTEGER NOT NULL,
      at DOUBLE PRECISION NOT NULL,
      event JSONB NOT NULL,
      CONSTRAINT pk_rollout_events PRIMARY KEY (seq),
      CONSTRAINT fk_rollout_events_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX ix_rollout_events_deployment_id_seq ON rollout_events (deployment_id, seq)
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("rollout_events")
    op.drop_table("revisions")
    op.drop_table("instances")
    op.drop_table("versions")
    op.drop_table("deployments")
    op.drop_table("secrets")
    op.drop_table("api_keys")
    op.drop_table("agents")
    op.drop_table("tenants")
    op.drop_table("platform_keys")
    op.drop_table("idempotency_keys")
