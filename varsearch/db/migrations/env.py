"""Alembic's entry: runs the migrations on the connection it is given, inside its transaction."""

from alembic import context

from varsearch.db.engine import VERSION_TABLE
from varsearch.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE
)
context.run_migrations()
