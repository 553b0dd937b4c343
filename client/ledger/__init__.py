"""What was spent of the patients' privacy, at the site, for good."""

from client.ledger.entries import Entry, Population, Receipt, Release
from client.ledger.ledger import PrivacyLedger

__all__ = ["Entry", "Population", "PrivacyLedger", "Receipt", "Release"]
