"""What a curvature matrix looks like: traces, energies, densities, blocks, slices."""
