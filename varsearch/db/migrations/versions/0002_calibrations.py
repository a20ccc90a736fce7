"""Calibrations of models."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates calibration."""
    op.create_table(
        "calibration",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("protocol", sa.String(64), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
