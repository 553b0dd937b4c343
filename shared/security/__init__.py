"""Keys, derivations and signatures: the only package that imports cryptography."""
