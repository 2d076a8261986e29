"""What a run used of the CPU, where its session had a worker of its own."""

from alembic import op

revision = "0011_sessions"
down_revision = "0010_audit"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE run_records ADD COLUMN IF NOT EXISTS cpu_s double precision")


def downgrade() -> None:
    op.execute("ALTER TABLE run_records DROP COLUMN IF EXISTS cpu_s")
