"""Regular packages win over those of the same name that other distributions install (kronfluence has one)."""
