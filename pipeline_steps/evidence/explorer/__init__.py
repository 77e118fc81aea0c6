"""The explorer: pages to look through all images of a study, side by side."""
