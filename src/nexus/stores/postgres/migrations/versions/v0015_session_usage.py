"""What each session used, to be charged by; one row for each part of its use on an instance."""

from alembic import op

revision = "0015_session_usage"
down_revision = "0012_checkpoints"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE session_usage (
          instance_id TEXT NOT NULL,
          session_id TEXT NOT NULL,
          part TEXT NOT NULL,
          began_at DOUBLE PRECISION NOT NULL,
          tenant TEXT NOT NULL,
          agent TEXT NOT NULL,
          environment TEXT NOT NULL,
          version TEXT NOT NULL,
          cpu_s DOUBLE PRECISION NOT NULL,
          memory_byte_seconds DOUBLE PRECISION NOT NULL,
          bytes_in BIGINT NOT NULL,
          bytes_out BIGINT NOT NULL,
          CONSTRAINT pk_session_usage PRIMARY KEY (instance_id, session_id, part, began_at)
        )
        """
    )
    op.execute("CREATE INDEX ix_session_usage_session ON session_usage (tenant, session_id)")


def downgrade() -> None:
    op.execute("DROP TABLE session_usage")
