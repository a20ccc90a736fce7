"""Profiles of models."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates profile."""
    op.create_table(
        "profile",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("part", sa.String(20), primary_key=True),
        sa.Column("protocol", sa.String(64), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
    )
