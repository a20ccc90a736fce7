from tests.db.conftest import postgres, storage

__all__ = ["postgres", "storage"]
