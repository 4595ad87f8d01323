"""Remote: another machine measures. `trimtab device` serves there, and a target of its address asks it from here."""
