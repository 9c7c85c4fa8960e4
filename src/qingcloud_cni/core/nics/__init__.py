"""NICs, attachments and intents, and the table of their transitions."""
