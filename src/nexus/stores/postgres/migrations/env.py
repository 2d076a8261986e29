"""Alembic's entry: runs the scripts on the connection that `stores.postgres.migrate` hands in."""

from alembic import context

from nexus.stores.postgres.metadata import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
