"""Pages of the documentation that a command writes its table into, so that no figure is copied."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shared.errors import ConfigError
from shared.files import write_atomic


@dataclass(frozen=True)
class MarkedPage:
    """A page with a place for a table, between two lines that name it.

    Attributes:
        path: The page.
        name: In the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
    """

    path: Path
    name: str

    @classmethod
    def open(cls, path: Path, name: str) -> Self:
        """Return a page that a table fits into; to be asked before the table is worked out.

        Raises:
            ConfigError: If it cannot be read, or has no place for the table.
        """
        page = cls(path, name)
        page._around()
        return page

    def write(self, content: str) -> None:
        """Put a table into the page as it is now.

        Raises:
            ConfigError: If it cannot be read any more, or has no place for the table any more.
            StorageError: If it cannot be written.
        """
        before, after = self._around()
        begin, end = self._lines()
        write_atomic(self.path, f"{before}{begin}\n\n{content}\n{end}{after}".encode())

    def _around(self) -> tuple[str, str]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--write {self.path}: {error.strerror}; expected a page") from None
        begin, end = self._lines()
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ConfigError(
                f"--write {self.path}: the page needs the two lines {begin} and {end}, in "
                "that order"
            )
        return before, after

    def _lines(self) -> tuple[str, str]:
        return f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"
