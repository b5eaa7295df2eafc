"""Makes the weights mood_infer loads: teaches 3D U-Nets to find synthetic anomalies in normal scans."""
