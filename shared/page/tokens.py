"""Colour tokens: one table, two themes; everything on a page draws from it.

Series hues are Okabe and Ito's, deepened until they stand at least 4:1 against white.
"""

LIGHT = {
    "paper": "#faf9f6", "card": "#ffffff", "sunk": "#f1efe9",
    "ink": "#1b1f24", "ink-2": "#454d57", "ink-3": "#626b76",
    "rule": "#e0dcd3", "rule-2": "#b5afa2", "link": "#0b5cad", "focus": "#0b5cad",
    "base": "#6b7280", "local": "#00805e", "shared": "#0072b2", "personal": "#c8500a",
    "centralised": "#8e4585",
    "in": "#46525f", "late": "#a86b00", "missing": "#b3261e", "idle": "#a39d90",
    "good-bg": "#e4f1ea", "good-ink": "#12522f",
    "warn-bg": "#fbeed2", "warn-ink": "#654200",
    "bad-bg": "#fbe5e2", "bad-ink": "#861a15",
}  # fmt: skip
DARK = {
    "paper": "#131619", "card": "#1a1e22", "sunk": "#22272c",
    "ink": "#eae7e1", "ink-2": "#bfc3c8", "ink-3": "#989fa8",
    "rule": "#30363c", "rule-2": "#59626c", "link": "#84bcf3", "focus": "#84bcf3",
    "base": "#9aa4b2", "local": "#35b98f", "shared": "#5db2ec", "personal": "#f28a4b",
    "centralised": "#c58bc0",
    "in": "#a9b4c0", "late": "#e0a93b", "missing": "#f0857d", "idle": "#5d666f",
    "good-bg": "#17352a", "good-ink": "#a9e0c3",
    "warn-bg": "#3b2e12", "warn-ink": "#f3d592",
    "bad-bg": "#431d1b", "bad-ink": "#f6b6b0",
}  # fmt: skip


def css() -> str:
    """Return the three rule blocks: light, dark by preference, dark by choice."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in table.items()) for table in (LIGHT, DARK)
    )
    by_preference = f":root:not([data-theme=light]){{color-scheme:dark;{dark}}}"
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{{by_preference}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )
