"""Says how good the maps are: validation anomalies, exact metrics, reports."""
