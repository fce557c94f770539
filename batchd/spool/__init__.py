"""The spool's edges: what is dropped into the inbox, and what appears in the outbox."""
