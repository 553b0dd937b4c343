"""Secure aggregation: the coordinator learns the sum of the sites' vectors, and no site's own.

Double masking over the full graph (Bonawitz et al., 2017, https://eprint.iacr.org/2017/281), in
the variant against a coordinator that does not follow the protocol. Five stages; every site
answers each once:

1. *advertise*: fresh public keys, signed with the site's long-term key.
2. *share*: the site cuts the secrets behind its masks into shares, sealed for one site each.
3. *mask*: vector + own mask + one mask per pair of sites, which cancel in the sum.
4. *agree*: signs which sites' vectors arrived, so that all unmask the same sum.
5. *reveal*: of every site whose vector arrived the share of its own mask; of every other site
   the share of its pairwise masks; never both.

Everything here is a pure function or a state machine without input and output: ``site`` and
``coordinator`` take messages as bytes and give messages as bytes. Nothing is ever stored: a site
that was restarted has no part in the session any more, and the round is repeated with new keys.
Python cannot wipe memory for certain; secrets are dropped as soon as they are not needed.

Assumed: the sites' long-term keys are authentic, and at least ``threshold`` sites follow the
protocol. Then the coordinator, together with fewer than a third of the sites, learns no more
than the sum over at least ``threshold`` sites. What the sum itself tells is not hidden.
"""
