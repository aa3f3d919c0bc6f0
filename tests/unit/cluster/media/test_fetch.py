"""Fetching pictures: a real TLS server on loopback, real sockets, and names that only the tests' own resolver knows."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from cluster.admission.slots import Admission
from cluster.config import MediaConfig
from cluster.errors import (
    BodyTooLarge,
    FetchFailed,
    ForbiddenUrl,
    InvalidPicture,
    PictureTooLarge,
    PictureUnavailable,
    PrismError,
)
from cluster.media.reader import MediaReader
from cluster.metrics import FETCHES
from tests.helpers.hostile import ANSWERS, DATA, LIMIT_BYTES, LOCATIONS, PRIVATE_HOSTS, SERVERS, SLOW, URLS
from tests.helpers.sites import Names, Network, Reply, Site, ok, redirect, reply, stall, stall_in_body, trickle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

PARAM = "messages[0].content[1].image_url.url"
PUBLIC = "93.184.216.34"
PUBLIC_V6 = "2606:4700::1111"
"""Both look public; the tests' network leads them to the server on loopback."""
MOST_S = 20.0
"""No error comes later than this."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that the system does not trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the authority's certificate, for ``MediaConfig.ca_file``."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the system's certificate store by an empty one, because reading it takes longer than most of these
    tests."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.fixture
async def site(authority: trustme.CA) -> AsyncIterator[Site]:
    """A running TLS server whose certificate is valid for every host name in these tests."""
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: site.names.append(name)
    authority.issue_cert("localhost", "pictures.example", "xn--bcher-kva.example", PUBLIC_V6).configure_cert(context)
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def reading(site: Site, ca_file: str | None, **options: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """A function that reads a URL in which ``{port}`` stands for the site's port. By default it trusts localhost and
    uses the system's resolver."""
    lookup, network = options.pop("lookup", None), options.pop("network", None)
    config = MediaConfig(**{"trusted_hosts": {"localhost"}, "ca_file": ca_file, "fetch_timeout_s": 30.0, **options})
    reader = MediaReader(config, revision="r", lookup=lookup, network=network)

    async def read(url: str, hold: Callable[[int], None] = lambda _: None) -> Any:
        return await reader.read(url.replace("{port}", str(site.port)), PARAM, hold)

    try:
        yield read
    finally:
        await reader.close()


def lookup_of(names: dict[str, list[str]]) -> Callable[[str], Awaitable[list[str]]]:
    """A look-up that knows some names. It takes ``localhost`` and those below it for this machine, as resolvers do."""

    async def look_up(host: str) -> list[str]:
        host = host.rstrip(".").lower()
        if host.split(".")[-1] == "localhost":
            return ["127.0.0.1"]
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return names[host]

    return look_up


async def refusal(kind: type[PrismError], site: Site, ca_file: str | None, url: str, **options: Any) -> PrismError:
    """Reads ``url``, checks that the error is well formed and tells nothing about the internal network, and returns the
    error."""
    async with reading(site, ca_file, **options) as read, asyncio.timeout(MOST_S):
        with pytest.raises(PrismError) as caught:
            await read(url)
    error = caught.value
    assert type(error) is kind
    assert error.param == PARAM
    assert error.message.endswith(".")
    assert not any(inside in error.message for inside in ("127.", "10.", "169.254", "::1", "Errno", "<title>"))
    return error


async def test_a_picture_is_fetched_over_tls(site: Site, ca_file: str) -> None:
    """The bytes arrive whole from a server that is trusted by the configured CA and addressed by the name in the
    URL."""
    site.replies["/cat.jpg?size=1&q=%C3%BC"] = ok(DATA)
    async with reading(site, ca_file) as read:
        picture = await read("https://localhost:{port}/cat.jpg?size=1&q=%C3%BC#part")
    assert picture.data == DATA
    assert picture.param == PARAM
    (request,) = site.requests
    assert site.names == ["localhost"]
    assert f"\r\nHost: localhost:{site.port}\r\n" in request
    assert "\r\nAccept-Encoding: identity\r\n" in request
    assert not {"cookie", "authorization", "referer"} & {line.split(":")[0].lower() for line in request.splitlines()}


async def test_bytes_are_announced_before_they_are_kept(site: Site, ca_file: str) -> None:
    """The callback that reserves memory is called before any byte is kept, and it may refuse in the middle of a
    body."""
    site.replies["/cat.jpg"] = ok(DATA)
    admission = Admission(1, 2**20)
    async with reading(site, ca_file) as read:
        await read("https://localhost:{port}/cat.jpg", admission.enter().hold)
        with pytest.raises(BodyTooLarge):
            await read("https://localhost:{port}/cat.jpg", Admission(1, len(DATA) - 1).enter().hold)
    assert admission.num_bytes == len(DATA)


async def test_a_chunked_answer_is_put_together(site: Site, ca_file: str) -> None:
    """A body without Content-Length is read to its end."""
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(DATA[at : at + 300]), DATA[at : at + 300]) for at in range(0, len(DATA), 300)
    )
    site.replies["/"] = reply("200 OK", chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked")
    async with reading(site, ca_file) as read:
        assert (await read("https://localhost:{port}/")).data == DATA


async def test_a_connection_is_used_again_and_closed_in_the_end(site: Site, ca_file: str) -> None:
    """Two pictures of one host share a checked connection, and ``close`` leaves none behind."""
    site.replies["/"] = ok(DATA)
    names = Names([["127.0.0.1"]])
    async with reading(site, ca_file, lookup=names) as read:
        await read("https://localhost:{port}/")
        await read("https://localhost:{port}/")
        assert (site.num_connections, names.asked) == (1, ["localhost"])
    await site.idle.wait()


async def test_redirects_are_followed_up_to_the_limit(site: Site, ca_file: str) -> None:
    """Relative and absolute redirects with every redirect status are followed. One redirect more than the limit is
    refused."""
    for hop, status in enumerate(("301 Moved", "303 See Other", "307 Temporary", "308 Permanent")):
        site.replies[f"/{hop}"] = redirect(
            f"/{hop + 1}" if hop % 2 else f"https://LOCALHOST:{site.port}/{hop + 1}", status
        )
    site.replies["/4"] = ok(DATA)
    async with reading(site, ca_file, max_redirects=4) as read:
        assert (await read("https://localhost:{port}/0")).data == DATA
    assert "3 times" in (await refusal(FetchFailed, site, ca_file, "https://localhost:{port}/0")).message
    await refusal(FetchFailed, site, ca_file, "https://localhost:{port}/3", max_redirects=0)


async def test_a_redirect_loop_ends(site: Site, ca_file: str) -> None:
    """A URL that redirects to itself is requested only as often as the limit allows."""
    site.replies["/"] = redirect("/")
    await refusal(FetchFailed, site, ca_file, "https://localhost:{port}/")
    assert len(site.requests) == 4


@pytest.mark.parametrize("location", LOCATIONS)
async def test_every_hop_is_checked_like_the_first(location: str, site: Site, ca_file: str) -> None:
    """A redirect of a trusted server to a private address, to another scheme or with credentials is refused."""
    site.replies["/"] = redirect(location)
    names = lookup_of({"localhost": ["127.0.0.1"], **ANSWERS})
    await refusal(LOCATIONS[location], site, ca_file, "https://localhost:{port}/", lookup=names)
    assert len(site.requests) == 1


LIMIT = len(DATA)


async def test_a_body_may_have_the_limit_to_the_byte(site: Site, ca_file: str) -> None:
    """A body of exactly the allowed size is read. A body that announces one byte more is refused, and the error has
    both figures."""
    site.replies |= {"/fits": ok(DATA), "/more": ok(DATA + b"\0")}
    async with reading(site, ca_file, max_picture_bytes=LIMIT) as read:
        assert (await read("https://localhost:{port}/fits")).data == DATA
    error = await refusal(PictureTooLarge, site, ca_file, "https://localhost:{port}/more", max_picture_bytes=LIMIT)
    assert error.figures == {"asked_bytes": LIMIT + 1, "limit_bytes": LIMIT}


async def test_an_endless_body_is_cut_off_at_the_limit(site: Site, ca_file: str) -> None:
    """A body without Content-Length is counted while it arrives, and the connection is closed once it is too large."""
    sent = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(reply("200 OK", b"", "Transfer-Encoding: chunked"))
        while not writer.is_closing():
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await writer.drain()
            sent += 0x10000
            await asyncio.sleep(0)  # drain does not yield by itself while there is room

    site.replies["/"] = pour
    error = await refusal(PictureTooLarge, site, ca_file, "https://localhost:{port}/", max_picture_bytes=200_000)
    assert error.figures == {"limit_bytes": 200_000}
    await site.idle.wait()
    assert sent < 20_000_000


PATIENCE_S = (0.2, 1.0, 5.0)
"""Timeouts to try, for on a busy machine the first may be over before the server was reached."""


@pytest.mark.parametrize("behaviour", [stall, stall_in_body, trickle])
async def test_a_slow_server_is_left_in_time(behaviour: Reply, ca_file: str, authority: trustme.CA) -> None:
    """A fetch from a server that is silent before its response, silent in the middle or very slow ends at the
    timeout, and its connection is closed."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            task = asyncio.ensure_future(behaviour(writer))
            with suppress(ConnectionError):
                await reader.read()
            task.cancel()
            await asyncio.wait([task])
            gone.set()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        slow = Site(port=server.sockets[0].getsockname()[1])
        for timeout_s in PATIENCE_S:
            began = time.monotonic()
            error = await refusal(
                PictureUnavailable, slow, ca_file, "https://localhost:{port}/", fetch_timeout_s=timeout_s
            )
            assert timeout_s <= time.monotonic() - began < timeout_s + 3
            assert error.figures == {"limit_s": timeout_s}
            if asked.is_set():
                break
        await gone.wait()


async def test_a_server_that_never_greets_is_left_and_hung_up_on(ca_file: str) -> None:
    """A server that accepts the connection but does not answer the TLS handshake is given up at the timeout, and the
    socket is closed."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
            asked.set()
            await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        mute = Site(port=server.sockets[0].getsockname()[1])
        for timeout_s in PATIENCE_S:
            await refusal(PictureUnavailable, mute, ca_file, "https://localhost:{port}/", fetch_timeout_s=timeout_s)
            if asked.is_set():
                break
        await gone.wait()


async def test_a_slow_lookup_counts_too(site: Site, ca_file: str) -> None:
    """A lookup that never ends is given up at the same timeout."""

    async def never(_host: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    await refusal(PictureUnavailable, site, ca_file, "https://pictures.example/", lookup=never, fetch_timeout_s=0.05)


async def test_many_given_up_fetches_leave_room_for_the_next(site: Site, ca_file: str) -> None:
    """Cancelled fetches, many and at random moments, never use up the connections."""
    site.replies["/"] = ok(DATA)
    async with reading(site, ca_file) as read:
        for turns in range(60):
            tasks = [asyncio.ensure_future(read("https://localhost:{port}/")) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert (await read("https://localhost:{port}/")).data == DATA


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, FetchFailed) for status in ("404 Not Found", "403 Forbidden", "206 Part", "204 No", "304 Same")),
        *((status, PictureUnavailable) for status in ("500 Oops", "503 Later", "429 Slow Down", "408 Late")),
    ],
)
async def test_any_status_but_200_is_named(status: str, kind: type[PrismError], site: Site, ca_file: str) -> None:
    """The error names the server's status and shows nothing of the body. Only a busy server is worth a retry."""
    body = b"" if status[:3] in ("204", "304") else b"<title>Internal</title>"
    site.replies["/"] = reply(status, body, *([f"Content-Length: {len(body)}"] if body else []))
    error = await refusal(kind, site, ca_file, "https://localhost:{port}/")
    assert f"status {status[:3]}" in error.message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"rubbish\r\n\r\n",
        reply("200 OK", b"\xff\xd8", "Content-Length: 99"),
        reply("200 OK", b"", "Content-Length: x"),
    ],
    ids=["nothing", "no HTTP", "cut short", "bad length"],
)
async def test_a_server_that_breaks_off_is_reported(answer: bytes, site: Site, ca_file: str) -> None:
    """A response that is not HTTP, or that ends too soon, is an error and never a short picture."""

    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    site.replies["/"] = hang_up
    await refusal(PictureUnavailable, site, ca_file, "https://localhost:{port}/")


async def test_a_compressed_answer_is_refused(site: Site, ca_file: str) -> None:
    """A compressed body is refused, because none was asked for. The encoding ``identity`` is accepted."""
    packed = gzip.compress(bytes(100_000))
    site.replies |= {"/gzip": ok(packed, "content-encoding: GZIP"), "/plain": ok(DATA, "Content-Encoding: identity")}
    assert "Content-Encoding" in (await refusal(FetchFailed, site, ca_file, "https://localhost:{port}/gzip")).message
    async with reading(site, ca_file) as read:
        assert (await read("https://localhost:{port}/plain")).data == DATA


async def test_a_page_in_place_of_a_picture_is_refused(site: Site, ca_file: str) -> None:
    """A picture is judged by its bytes, not by the type that the server declares."""
    site.replies["/"] = ok(b"<title>Log in</title>", "Content-Type: image/png")
    await refusal(InvalidPicture, site, ca_file, "https://localhost:{port}/")


async def test_certificates_are_checked(site: Site, ca_file: str, tmp_path: Path) -> None:
    """A certificate for another name, or of an unknown CA, ends the fetch before a request is sent."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    local, names = "https://localhost:{port}/", Names([["127.0.0.1"]])
    await refusal(FetchFailed, site, None, local)
    await refusal(FetchFailed, site, str(other), local)
    wrong_name = "https://else.example:{port}/"
    await refusal(FetchFailed, site, ca_file, wrong_name, lookup=names, trusted_hosts={"else.example"})
    assert not site.requests


async def test_the_systems_authorities_count_beside_the_configured_one(
    site: Site, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that the system trusts is trusted, with and without ``ca_file``."""
    site.replies["/"] = ok(DATA)
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    for configured in (None, str(other)):
        async with reading(site, configured) as read:
            assert (await read("https://localhost:{port}/")).data == DATA


async def test_the_environments_proxies_are_ignored(site: Site, ca_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not used, because it would resolve names without Prism's checks."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.replies["/"] = ok(DATA)
    async with reading(site, ca_file) as read:
        assert (await read("https://localhost:{port}/")).data == DATA


async def test_a_closed_port_is_a_failure(ca_file: str) -> None:
    """The error about a host that refuses the connection tells nothing about the internal network."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    await refusal(PictureUnavailable, Site(port=port), ca_file, "https://localhost:{port}/")


@pytest.mark.parametrize(
    ("url", "kind"), [*((f"https://{host}:{{port}}/", ForbiddenUrl) for host in [*PRIVATE_HOSTS, *ANSWERS]), *URLS]
)
async def test_no_spelling_of_a_private_address_is_dialled(
    url: str, kind: type[PrismError], site: Site, ca_file: str
) -> None:
    """A hostile URL is refused before a connection is opened, in every notation that some library accepts."""
    network = Network(site)
    options = {"trusted_hosts": set(), "network": network, "lookup": lookup_of(ANSWERS)}
    await refusal(kind, site, ca_file, url, **options)
    assert not network.dialled


@pytest.mark.parametrize("name", SERVERS)
async def test_a_hostile_server_is_a_typed_error_in_bounded_time(name: str, site: Site, ca_file: str) -> None:
    """Each hostile behaviour of a server becomes the expected error, and its connection is closed."""
    site.replies["/"], kind = SERVERS[name]
    timeout_s = 0.2 if name in SLOW else 30.0
    await refusal(
        kind, site, ca_file, "https://localhost:{port}/", max_picture_bytes=LIMIT_BYTES, fetch_timeout_s=timeout_s
    )


async def test_a_server_without_tls_is_a_failure(ca_file: str) -> None:
    """A server that answers the TLS greeting with plain HTTP is named as one without valid TLS, and no retry helps."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(DATA))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        plain = Site(port=server.sockets[0].getsockname()[1])
        assert "TLS" in (await refusal(FetchFailed, plain, ca_file, "https://localhost:{port}/")).message


async def test_the_outcome_of_each_fetch_is_counted(site: Site, ca_file: str) -> None:
    """A fetch is counted once, by success, by the code of its error, or as cancelled."""
    site.replies |= {"/": ok(DATA), "/busy": SERVERS["busy"][0], "/slow": stall}
    private = "https://10.0.0.1/"
    outcomes = ("ok", "image_unavailable", "image_url_forbidden", "cancelled")
    before = [FETCHES.labels(outcome)._value.get() for outcome in outcomes]
    async with reading(site, ca_file) as read:
        await asyncio.gather(read("https://localhost:{port}/"), read("https://localhost:{port}/"))
        await asyncio.gather(read("https://localhost:{port}/busy"), read(private), return_exceptions=True)
        slow = asyncio.ensure_future(read("https://localhost:{port}/slow"))
        while not any("/slow" in request for request in site.requests):  # noqa: ASYNC110
            await asyncio.sleep(0)
        slow.cancel()
        await asyncio.wait([slow])
    after = [FETCHES.labels(outcome)._value.get() for outcome in outcomes]
    assert [late - early for early, late in zip(before, after, strict=True)] == [2, 1, 1, 1]


def test_the_hostile_cases_are_many() -> None:
    """More than 80 hostile URLs, answers of name servers, redirects and servers are tried."""
    assert len(PRIVATE_HOSTS) + len(ANSWERS) + len(URLS) + len(LOCATIONS) + len(SERVERS) >= 150


async def test_hostile_servers_take_nothing_from_other_requests(site: Site, ca_file: str) -> None:
    """While dozens of fetches hang in slow servers and slow names, another picture arrives."""
    site.replies |= {"/": ok(DATA), **{f"/{n}": behaviour for n, behaviour in enumerate(SLOW.values())}}
    stalled = asyncio.Event()

    async def names(host: str) -> list[str]:
        if host.startswith("slow"):
            await stalled.wait()
        return ["127.0.0.1"]

    async with reading(site, ca_file, lookup=names) as read:
        servers = [asyncio.ensure_future(read(f"https://localhost:{{port}}/{n % len(SLOW)}")) for n in range(48)]
        lookups = [asyncio.ensure_future(read(f"https://slow{n}.example/")) for n in range(48)]
        while len(site.requests) < len(servers):  # noqa: ASYNC110
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert (await read("https://localhost:{port}/")).data == DATA
        assert not any(task.done() for task in servers + lookups)
        for task in servers + lookups:
            task.cancel()
        await asyncio.wait(servers + lookups)


@pytest.mark.parametrize(
    "answer",
    [
        [PUBLIC, "10.0.0.1"],
        ["10.0.0.1", PUBLIC],
        ["::1"],
        [PUBLIC, "fe80::1%eth0"],
        [],
        socket.gaierror(socket.EAI_NONAME),
    ],
    ids=str,
)
async def test_one_private_address_condemns_a_name(answer: list[str] | Exception, site: Site, ca_file: str) -> None:
    """A name with one private address is refused with the error of a name that does not exist, so that internal
    names cannot be probed."""
    network = Network(site)
    url = "https://pictures.example/"
    error = await refusal(ForbiddenUrl, site, ca_file, url, lookup=Names([answer]), network=network)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert error.message == (await refusal(ForbiddenUrl, site, ca_file, url, lookup=Names([unknown]))).message
    assert not network.dialled


async def test_a_name_server_that_is_busy_is_worth_a_retry(site: Site, ca_file: str) -> None:
    """A temporary failure of a lookup is an error that a retry can help."""
    names = Names([socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")])
    error = await refusal(PictureUnavailable, site, ca_file, "https://pictures.example/", lookup=names)
    assert "try again" in error.message


async def test_the_address_that_was_checked_is_the_one_dialled(site: Site, ca_file: str) -> None:
    """The checked address is the one that is connected to, without a second lookup (DNS rebinding), and TLS checks
    the host's name."""
    site.replies["/"] = ok(DATA)
    names, network = Names([[PUBLIC], ["127.0.0.1"]]), Network(site)
    async with reading(site, ca_file, lookup=names, network=network) as read:
        assert (await read("https://pictures.example/")).data == DATA
    assert names.asked == ["pictures.example"]
    assert network.dialled == [PUBLIC]
    assert site.names == ["pictures.example"]
    assert "\r\nHost: pictures.example\r\n" in site.requests[0]


async def test_a_new_connection_is_checked_anew(site: Site, ca_file: str) -> None:
    """A new connection resolves and checks the name again, and refuses it if it has become private."""
    site.replies["/"] = ok(DATA, "Connection: close")
    names, network = Names([[PUBLIC], ["127.0.0.1"]]), Network(site)
    async with reading(site, ca_file, lookup=names, network=network) as read:
        await read("https://pictures.example/")
        with pytest.raises(ForbiddenUrl):
            await read("https://pictures.example/")
    assert network.dialled == [PUBLIC]


async def test_the_next_address_is_tried_when_one_is_dead(site: Site, ca_file: str) -> None:
    """A host with several addresses is reached at the first one that accepts, and given up after a few."""
    site.replies["/"] = ok(DATA)
    addresses = [f"93.184.216.{last}" for last in range(1, 9)]
    network = Network(site, dead=frozenset(addresses[:2]))
    async with reading(site, ca_file, lookup=Names([addresses]), network=network) as read:
        assert (await read("https://pictures.example/")).data == DATA
    assert network.dialled == addresses[:3]
    dead = Network(site, dead=frozenset(addresses))
    await refusal(
        PictureUnavailable, site, ca_file, "https://pictures.example/", lookup=Names([addresses]), network=dead
    )
    assert dead.dialled == addresses[:4]


async def test_an_international_name_is_asked_for_in_its_ascii_form(site: Site, ca_file: str) -> None:
    """The resolver, TLS and the Host header all get the ASCII form of an international name."""
    site.replies["/"] = ok(DATA)
    names = Names([[PUBLIC]])
    async with reading(site, ca_file, lookup=names, network=Network(site)) as read:
        await read("https://bücher.example/")
    assert names.asked == site.names == ["xn--bcher-kva.example"]


async def test_an_ipv6_address_may_stand_for_the_host(site: Site, ca_file: str) -> None:
    """A URL may have a public IPv6 address in brackets as its host."""
    site.replies["/"] = ok(DATA)
    network = Network(site)
    async with reading(site, ca_file, network=network) as read:
        await read(f"https://[{PUBLIC_V6}]:8443/")
    assert network.dialled == [PUBLIC_V6]
    assert f"\r\nHost: [{PUBLIC_V6}]:8443\r\n" in site.requests[0]


async def test_trust_is_by_name_and_not_by_address(site: Site, ca_file: str) -> None:
    """A trusted host is trusted in any case and with a final dot. Other names with the same address are not trusted."""
    site.replies["/"] = ok(DATA)
    options: dict[str, Any] = {"lookup": Names([["10.0.0.7"]]), "trusted_hosts": {"Pictures.Example."}}
    async with reading(site, ca_file, network=Network(site), **options) as read:
        await read("https://PICTURES.example/")
    for host in ("sub.pictures.example", "pictures.example.evil.example", "10.0.0.7"):
        await refusal(ForbiddenUrl, site, ca_file, f"https://{host}/", **options)
