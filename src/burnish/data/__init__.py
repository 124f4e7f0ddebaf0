"""Data rooms: from rows of a data set to parcels."""
