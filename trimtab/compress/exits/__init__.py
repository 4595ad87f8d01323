"""Networks that compute less for some inputs than for others: exits, gates and experts."""
