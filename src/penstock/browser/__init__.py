"""A model in a browser: ONNX Runtime Web in a page of a headless Chromium, with no driver between.

:mod:`server` serves the page and talks with it, :mod:`chromium` starts and ends the browser, :mod:`page` asks the page
and notices that it is gone, :mod:`session` is the session that a backend returns.
"""
