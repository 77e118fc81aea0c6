"""What a study's configuration may say: one pydantic model per step, composed into one study."""
