"""What trials cost: those that are stopped early are a part of an evaluation."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds cost to trial; until now every trial that was evaluated was evaluated whole."""
    op.add_column("trial", sa.Column("cost", sa.Float, nullable=False, server_default="0"))
    trial = sa.table("trial", sa.column("cost"), sa.column("attempts"), sa.column("state"))
    whole = (trial.c.attempts > 0) & trial.c.state.in_(("complete", "fail"))
    op.execute(trial.update().where(whole).values(cost=1.0))
