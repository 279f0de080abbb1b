"""Navigation by instructions through the streets of a city (Chu et al., section 4.2, after V-IRL)."""
