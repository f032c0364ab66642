"""Reports: records of checks in, text out. No room here knows pytest or torch."""
