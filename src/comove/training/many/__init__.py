"""Many models of one recipe trained together on one device."""
