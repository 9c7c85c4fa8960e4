"""Attachments: ADD, DEL, CHECK, GC, and DELs from the spool."""
