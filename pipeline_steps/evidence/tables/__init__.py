"""Tables as the paper lays them out, as CSV, Markdown and LaTeX."""
