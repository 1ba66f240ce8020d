"""What every answer tells a browser: run nothing, load nothing, frame nothing. A page that needs more says so."""

POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# /docs: Swagger UI, and ingest's own page, from this host. Both set inline styles; neither runs an inline script.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

# What `check --deploy` asks for and Rollcall does not do, with the reason.
SILENCED_CHECKS = [
    "security.W002",  # XFrameOptionsMiddleware: the middleware below sets the header, in async stacks without a thread
    "security.W003",  # CsrfViewMiddleware: no cookie and no session identifies anybody here, so no other page can use
    # one; except in ingest's admin, each of whose views checks by itself
    "security.W005",  # HSTS for subdomains, and …
    "security.W021",  # … preloading: promises for a whole domain, which are its owner's to make
    "security.W008",  # redirect to HTTPS: the proxy that ends TLS decides; the token was already sent unencrypted by then
    # SECRET_KEY: nothing is signed; code that tried to sign would fail without a key, and not use a known one. If the admin
    # is on, something is signed, and ingest's settings let this check speak.
    "security.W009",
]
