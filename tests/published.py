"""What ID-Booth prints (Tomasevic et al., FG 2025), as far as several tests ask for it."""

PLACES = (
    "forest",
    "city street",
    "beach",
    "office",
    "bus",
    "laboratory",
    "factory",
    "construction site",
    "hospital",
    "night club",
)
