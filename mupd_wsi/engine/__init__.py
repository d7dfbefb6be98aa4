"""The parts that :mod:`mupd_wsi.pipeline` is put together from: checks, the checked job, threads, plans."""
