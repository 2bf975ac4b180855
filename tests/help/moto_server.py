"""moto's server of S3, which wants signed requests: `python -m tests.help.moto_server PORT`.

`PUT /-/NAME` makes a bucket and `DELETE /-/NAME` removes it with all that is in it, without a signature.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, run_simple

from tests.help.servers import KEY, SECRET

REFUSED = "<Error><Code>SignatureDoesNotMatch</Code><Message>another secret</Message></Error>"
Start = Callable[[str, list[tuple[str, str]]], Any]


def signature(environ: dict[str, Any], credential: str, names: list[str]) -> str:
    """What a client with the secret signs a request with (AWS Signature Version 4)."""
    path, _, query = environ["RAW_URI"].partition("?")
    pairs = sorted(pair if "=" in pair else f"{pair}=" for pair in query.split("&") if pair)
    upper = {name: name.upper().replace("-", "_") for name in names}
    values = {name: environ.get(f"HTTP_{upper[name]}") or environ.get(upper[name], "") for name in names}
    headers = "".join(f"{name}:{' '.join(value.split())}\n" for name, value in values.items())
    parts = [environ["REQUEST_METHOD"], path, "&".join(pairs), headers, ";".join(names)]
    request = "\n".join([*parts, environ["HTTP_X_AMZ_CONTENT_SHA256"]])
    scope = credential.split("/", 1)[1]
    hashed = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", environ["HTTP_X_AMZ_DATE"], scope, hashed])
    key = b"AWS4" + SECRET.encode()
    for word in [*scope.split("/"), text]:
        key = hmac.digest(key, word.encode(), "sha256")
    return key.hex()


def is_signed(environ: dict[str, Any]) -> bool:
    """Whether the client has the key and the secret."""
    given = environ.get("HTTP_AUTHORIZATION", "")
    found = re.match(r"AWS4-HMAC-SHA256 Credential=(\S+), ?SignedHeaders=(\S+), ?Signature=(\S+)", given)
    if not found or found[1].split("/")[0] != KEY:
        return False
    return hmac.compare_digest(signature(environ, found[1], found[2].split(";")), found[3])


class Application:
    """moto behind a check of signatures."""

    def __init__(self) -> None:
        self.inner: Any = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/-/"):
            buckets = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
            name = environ["PATH_INFO"][3:]
            if environ["REQUEST_METHOD"] == "PUT":
                buckets.create_bucket(name, "us-east-1")
            else:
                buckets.get_bucket(name).keys.clear()
                buckets.delete_bucket(name)
            start("204 No Content", [])
            return []
        if not is_signed(environ):
            start(
                "403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(REFUSED)))]
            )
            return [REFUSED.encode()]
        answer: Iterable[bytes] = self.inner(environ, start)
        return answer


class Handler(WSGIRequestHandler):
    """Connections stay open, as those of a store do."""

    protocol_version = "HTTP/1.1"


def main() -> None:
    """Serves until it is killed."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple("127.0.0.1", int(sys.argv[1]), Application(), threaded=True, request_handler=Handler)


if __name__ == "__main__":
    main()
