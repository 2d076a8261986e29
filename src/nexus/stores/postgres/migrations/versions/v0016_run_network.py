"""What a run sent and received through its way out."""

from alembic import op

revision = "0016_run_network"
down_revision = "0015_session_usage"


def upgrade() -> None:
    for name in ("network_in", "network_out"):
        op.execute(f"ALTER TABLE run_records ADD COLUMN IF NOT EXISTS {name} bigint")


def downgrade() -> None:
    for name in ("network_in", "network_out"):
        op.execute(f"ALTER TABLE run_records DROP COLUMN IF EXISTS {name}")
