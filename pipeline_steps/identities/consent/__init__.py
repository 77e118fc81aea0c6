"""Withdrawal of consent: what of a study is one person's, and how it goes."""
