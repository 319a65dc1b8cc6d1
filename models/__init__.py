"""The models of the paper: its layer tables, its latent variables, its game. This package never imports `bench`."""
