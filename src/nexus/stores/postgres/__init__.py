"""PostgreSQL: engine, tables, migrations and one adapter for each store port."""
