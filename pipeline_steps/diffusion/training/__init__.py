"""Fine-tuning: many identities at once over one frozen network."""
