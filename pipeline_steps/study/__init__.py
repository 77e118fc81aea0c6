"""A study: what it may say, what it makes and where, what makes two results the same, and why."""
