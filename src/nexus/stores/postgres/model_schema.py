"""Tables of the models room. Times are seconds since the epoch; amounts of money count 10⁻⁹ US dollars."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from nexus.stores.postgres.metadata import METADATA

_JSON = postgresql.JSONB(none_as_null=True)
_TIME = sa.Double

MODEL_SETTINGS = sa.Table(
    "model_settings",
    METADATA,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", _JSON, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
    sa.Column("updated_at", _TIME, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)

MODEL_BUDGETS = sa.Table(
    "model_budgets",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("value", _JSON, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)

MODEL_STOPS = sa.Table(
    "model_stops",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", _TIME, nullable=False),
    sa.Column("stopped_by", sa.Text, nullable=False),
)

MODEL_NOTICES = sa.Table(
    "model_notices",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("budget", sa.Text, nullable=False),
    sa.Column("value", _JSON, nullable=False),
    sa.Column("url", sa.Text),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", _TIME),
    sa.Column("last_error", sa.Text),
    sa.Index("ix_model_notices_tenant", "tenant", "at"),
    sa.Index("ix_model_notices_due", "next_at", postgresql_where=sa.text("status = 'pending'")),
)
