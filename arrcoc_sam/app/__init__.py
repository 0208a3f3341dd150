"""The web page: click on a picture and see its levels and where attention lies; paint a mask and see how good it is.

:mod:`~arrcoc_sam.app.desk` does the work and knows nothing of the page; :mod:`~arrcoc_sam.app.page` lays it out.
"""

from arrcoc_sam.app.desk import Desk
from arrcoc_sam.app.page import build_page, painted, require_gradio, serve

__all__ = ["Desk", "build_page", "painted", "require_gradio", "serve"]
