"""Rollouts: how each revision takes over, and how far it is."""

from alembic import op

revision = "0003_rollouts"
down_revision = "0002_tasks"


def upgrade() -> None:
    op.execute("ALTER TABLE revisions ADD COLUMN strategy JSONB, ADD COLUMN progress JSONB")


def downgrade() -> None:
    op.execute("ALTER TABLE revisions DROP COLUMN strategy, DROP COLUMN progress")
