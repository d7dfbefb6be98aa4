"""Training of stainers on paired H&E and marker images."""
