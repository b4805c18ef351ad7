"""Tokens, shares and numbers as people read them."""

Number = int | float


def brief(value: Number) -> str:
    """A number in few characters: 1.2k, 0.35, 3e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if size < 1000 else f"{value:,.0f}"


def visible(text: str) -> str:
    """A token with its line breaks and tabs shown, and nothing that a page cannot hold."""
    shown = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in shown)


def share(density: float) -> str:
    """How often a feature fires, for people."""
    if density <= 0:
        return "never"
    return f"{density:.1%}" if density >= 0.01 else f"1 in {round(1 / density):,}"
