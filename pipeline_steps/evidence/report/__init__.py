"""The report and the card of a published dataset."""
