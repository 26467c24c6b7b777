"""What verl needs to treat a machine without accelerators as a device; a GPU run imports nothing from here."""
