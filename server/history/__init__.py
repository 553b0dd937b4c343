"""The run history: SQLAlchemy and Alembic live here and nowhere else in the server."""

from server.history.history import RunHistory

__all__ = ["RunHistory"]
