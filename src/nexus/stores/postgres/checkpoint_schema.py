"""Tables of LangGraph's checkpoints: `graph_checkpoints`, the values of their channels and their pending writes."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from nexus.stores.postgres.metadata import METADATA

_PLACE = ("tenant", "agent", "environment", "thread", "ns")


def _keys(*more: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, primary_key=True) for name in (*_PLACE, *more)]


def _texts(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


GRAPH_CHECKPOINTS = sa.Table(
    "graph_checkpoints",
    METADATA,
    *_keys("id"),
    sa.Column("parent", sa.Text),
    sa.Column("run_id", sa.Text),
    sa.Column("versions", postgresql.JSONB, nullable=False),
    *_texts("kind"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    *_texts("meta_kind"),
    sa.Column("meta", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("ix_graph_checkpoints_created", "created_at"),
)

GRAPH_VALUES = sa.Table(
    "graph_values",
    METADATA,
    *_keys("channel", "version"),
    *_texts("kind"),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

GRAPH_WRITES = sa.Table(
    "graph_writes",
    METADATA,
    *_keys("checkpoint", "task"),
    sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
    *_texts("task_path", "channel", "kind"),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
