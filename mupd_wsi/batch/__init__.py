"""Many slides: folders and lists of them, several processes or a cluster, and one slide on many machines.

Everything is done by :func:`mupd_wsi.pipeline.stain_slide` or its parts; here it is decided which slide is stained when
and where, what is done already, and what is told of it.
"""
