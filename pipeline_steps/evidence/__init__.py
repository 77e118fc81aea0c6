"""What the scoring and presenting steps share: sources, score rows, tables, plots, the page."""
