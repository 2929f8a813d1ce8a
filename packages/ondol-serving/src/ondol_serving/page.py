"""The documentation page at `/`: BentoML's own, with the model's name, which its style hides.

Left out is the tracker that it would load from Google.
"""

import re
from functools import cache
from pathlib import Path

import bentoml
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PAGE = Path(bentoml.__file__).parents[1] / "_bentoml_impl" / "server" / "main-openapi.html"
TRACKER = re.compile(r"<!-- Google Tag Manager.*?<!-- End Google Tag Manager[^>]*-->", re.DOTALL)
UNFRAMED = {"X-Frame-Options": "DENY", "Content-Security-Policy": "frame-ancestors 'none'"}
NAMED = "<style>.info .main .title { visibility: visible } .info .main .title span { position: static }</style></head>"


class Page:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer `GET /` with the page, and let every other request through."""
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET" and PAGE.exists():
            return await HTMLResponse(read_page(), headers=UNFRAMED)(scope, receive, send)
        await self.app(scope, receive, send)


@cache
def read_page() -> str:
    """Return the page."""
    return TRACKER.sub("", PAGE.read_text(encoding="utf-8")).replace("</head>", NAMED)
