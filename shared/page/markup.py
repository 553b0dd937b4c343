"""The one door through which a string becomes HTML without being escaped."""

from markupsafe import Markup


def trusted(html: str) -> Markup:
    """Mark as HTML what this project built itself: numbers, fixed words and escaped names."""
    return Markup(html)  # noqa: S704 - the only use; callers escape every name and text
