"""Synthetic institutions: radiograph-like pictures with findings, and reports in each site's style.

A phantom study is a *latent* (anatomy and findings, ``studies``), of which a picture (``render``)
and a report (``grammar``) are two noisy views. ``writer`` puts a whole site on disk as an ordinary
site folder, so that simulated and real institutions are read by the same loader.
"""
