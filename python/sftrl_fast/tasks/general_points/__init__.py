"""GeneralPoints: four cards, one formula, a target (Chu et al., section 4.1)."""
