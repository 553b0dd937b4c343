"""The run history: SQLAlchemy and Alembic live here and nowhere else in the server."""

from server.history.history import PATIENT, RunHistory
from server.history.transactions import HistoryAwayError

__all__ = ["PATIENT", "HistoryAwayError", "RunHistory"]
