"""Synthetic anomalies (paper, section 2.1): shape, texture, edge, blending, and what joins them."""
