"""Checks of Label Studio: the server, the token, the account, the projects, webhooks, images."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from urllib.parse import urlsplit

from ls_propagate import pipeline
from ls_propagate.doctor.case import Case, Found, bad, doubtful, good
from plugin.label_studio import inspect
from plugin.label_studio.files import Addresses
from plugin.label_studio.gateway import WEBHOOK_ACTIONS
from plugin.label_studio.images import decode
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.pages import KEYMAP, SUBMIT_ON_SPACE, config_of, settings_of
from propagation.errors import ImageError
from sync.server import SECRET_HEADER

SOON = timedelta(days=14)  # before a token expires
CLOCK_SECONDS, CLOCK_BAD = 5.0, 60.0
CLOCK_REMEDY = "let NTP set both clocks"
NAMED = 5
LOOKED_AT = 200  # tasks of a project of which no pool is known yet
TASTE = {"expert_instruction", "show_instruction"}  # which a lead may word as they like
VITAL = {"maximum_annotations", "enable_empty_annotation", "skip_queue"}  # or answers are lost, pages are stuck
RENEW = "make a personal access token on Label Studio's Account & Settings page and set LABEL_STUDIO_API_KEY to it"
HOOK = "/webhook"
ALLOW_LOCAL = "start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false"


def server(case: Case) -> Found:
    """It answers, and is of a version that the product is tested with."""
    url = case.settings.label_studio_url
    case.answering = inspect.answering(url)
    said = f"Label Studio {case.answering.version} at {url}"
    if case.answering.version.split(".")[:2] != inspect.TESTED.split("."):
        return doubtful(
            f"{said}; tested with {inspect.TESTED}", f"use {inspect.TESTED}, or try the demo's job first"
        )
    return good(said)


def clock(case: Case) -> Found:
    """Both clocks agree.

    What is read, decided and given up doesn't depend on it; but a personal token is exchanged for one that
    lasts five minutes, by the server's clock, and used as long, by ours.
    """
    ahead = case.answering.ahead
    if ahead is None:
        return good("the server tells no time")
    if abs(ahead) <= CLOCK_SECONDS:
        return good("the server's and this machine's agree")
    said = f"the server's is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    key = case.settings.label_studio_api_key
    if ahead > CLOCK_BAD and key and inspect.read_token(key.get_secret_value()).kind == "personal":
        return bad(f"{said}, so that what a personal token is exchanged for is used after its end", CLOCK_REMEDY)
    return doubtful(f"{said}, so that the logs of both don't fit together", CLOCK_REMEDY)


def token(case: Case) -> Found:
    """It is of a kind that lasts, and the server takes it."""
    given = inspect.read_token(case.settings.token)
    if given.kind == "access":
        return bad("the token is one that lasts five minutes", RENEW)
    if given.expires is not None and given.expires <= datetime.now(UTC):
        return bad(f"the personal access token expired on {given.expires:%Y-%m-%d %H:%M} UTC", RENEW)
    case.gateway = case.closing.enter_context(pipeline.open_gateway(case.settings))
    case.gateway.user()
    case.account = inspect.account(case.gateway)
    said = f"a {given.kind}{' access' if given.kind == 'personal' else ''} token of {case.account.email}"
    if given.expires is not None and given.expires - datetime.now(UTC) < SOON:
        return doubtful(f"{said}, which expires on {given.expires:%Y-%m-%d %H:%M} UTC", RENEW)
    return good(said)


def permissions(case: Case) -> Found:
    """The account may do what the product does, as the server says; nothing is tried."""
    has = case.account.permissions
    if has is None:
        return doubtful("the server doesn't tell what the account may do", "see that it may make projects")
    wanted = [*inspect.NEEDED, *([inspect.WEBHOOKS] if case.settings.webhook_url else [])]
    lacking = [name for name in wanted if name not in has]
    if lacking:
        return bad(f"{case.account.email} lacks {', '.join(lacking)}", "give the account a role that has them")
    return good(f"{case.account.email} may do all that is needed")


def hotkey(case: Case) -> Found:
    """Space submits a page: for the daemon's account, and for everybody, where the server shows its keys."""
    name, key = next(iter(SUBMIT_ON_SPACE.items()))
    everybody = inspect.server_keymap(case.gateway)
    if everybody is not None:
        if everybody.get("annotation:submit", {}).get("key") == key["key"]:
            return good("space submits a page, for everybody")
        return doubtful(
            "space does not submit a page for annotators",
            f"start Label Studio with EDITOR_KEYMAP='{json.dumps(KEYMAP, separators=(',', ':'))}'",
        )
    if case.account.hotkeys.get(name) != key:
        return doubtful("space does not submit a page for this account", "run: ls-propagate connect PROJECT")
    return good("space submits a page for this account; a legacy token doesn't show whether for others")


def project(case: Case) -> Found:
    """The connected project and the two made for it are there, on this server."""
    if case.store.fact("connection") is None:
        return doubtful("none is connected", "run: ls-propagate connect PROJECT", lacking=True)
    case.connection = pipeline.connection_of(case.store)
    source = case.gateway.project(case.connection.project)
    for number in (case.connection.pages, case.connection.crops):
        case.gateway.project(number)
    said = f"{source.id} ({source.title}); pages are answered in {case.connection.pages}"
    if case.connection.server != case.gateway.url:
        return doubtful(
            f"{said}; it was connected at {case.connection.server}", "see that this is the same server, moved"
        )
    return good(said)


def labeling(case: Case) -> Found:
    """The project's labeling config has an image, and a label for every category that was found."""
    table = case.store.fact("table")
    categories = pipeline.load_table(case.store, case.settings).categories if table else ()
    project = case.gateway.project(case.connection.project)
    case.labeling = read_labeling(project.label_config, categories, case.settings.labels, project.title)
    if not table:
        return good("the labeling config takes masks; categories are compared once there are masks")
    return good(f"the labeling config takes all {len(categories)} categories")


def account(case: Case) -> Found:
    """Nobody annotates the project by hand with the daemon's account: whose work is whose would be unclear."""
    count = inspect.worked_on(case.gateway, case.connection.project, case.account.id)
    if count:
        many = f"{count} tasks" if count > 1 else "1 task"
        return doubtful(
            f"somebody annotated {many} of the project by hand as {case.account.email}",
            "make an account for the daemon alone, and set LABEL_STUDIO_API_KEY to its token",
        )
    return good(f"nobody annotates the project as {case.account.email}, which is the daemon's")


def pages(case: Case) -> Found:
    """The project where pages are answered is as it was made; its instructions may be worded anew."""
    made = inspect.project_settings(case.gateway, case.connection.pages)
    wanted, config = settings_of(case.connection.ask), config_of(case.connection.ask)
    differ = [name for name, value in wanted.items() if name not in TASTE and made.get(name) != value]
    where = f"{case.gateway.url}/projects/{case.connection.pages}/settings"
    said = [f"{name} is {made.get(name)!r}, not {wanted[name]!r}" for name in differ]
    remedy = f"set it back at {where}"
    if "".join(str(made.get("label_config")).split()) != "".join(config.split()):
        said.append("its labeling config is not the one that this version makes")
        renew = f"run: ls-propagate connect {case.connection.project}"
        remedy = f"{renew}; and {remedy}" if differ else f"{renew}, which sets it back"
    if not said:
        return good(f"project {case.connection.pages} is as it was made")
    return Found("bad" if VITAL & set(differ) else "doubtful", "; ".join(said), remedy)


def network(case: Case) -> Found:
    """The server's rules about private addresses let it call what runs here."""
    url = case.settings.webhook_url
    backend = f"http://{case.settings.backend_host}:{case.settings.backend_port}"
    refused = inspect.refuses_backend(case.gateway, backend)
    said = f"an ML backend at {backend} {'would be refused: ' + refused.said if refused else 'is allowed'}"
    if url is None:
        return good(f"no webhook_url is set: answers are polled for; {said}")
    refusal = inspect.refuses_webhook(case.gateway, case.connection.pages, f"{url}{HOOK}")
    if refusal is None:
        return good(f"webhooks to {url} are allowed; {said}")
    remedy = "set webhook_url to an address that Label Studio can reach, its host with a dot, or localhost"
    if refusal.banned:
        remedy = (
            f"{ALLOW_LOCAL}, or with SSRF_PROTECTION_ENABLED=false for webhooks alone; or take webhook_url out"
        )
    return bad(f"Label Studio takes no webhook to {url}: {refusal.said}", remedy)


def imports(case: Case) -> Found:
    """The server imports predictions in a time that doesn't grow with the project."""
    quick = inspect.imports_quickly(case.gateway, case.connection.project)
    if quick is None:
        return good("the server doesn't show how it imports predictions")
    if quick:
        return good("predictions are imported in a time that doesn't grow with the project")
    return doubtful(
        "each import of predictions takes longer the more tasks the project has",
        f"start Label Studio with {inspect.QUICK_IMPORTS}=true",
    )


def webhooks(case: Case) -> Found:
    """Those that sync sets up, in the source project and in that of the pages, are there, with our secret."""
    url, secret = case.settings.webhook_url, case.settings.webhook_secret
    if url is None or secret is None:
        return good("none are wanted: answers are polled for")
    lacking, foreign = [], []
    for number in (case.connection.project, case.connection.pages):
        there = [
            hook
            for hook in case.gateway.webhooks(number)
            if hook.url == f"{url}{HOOK}" and hook.active and hook.actions >= set(WEBHOOK_ACTIONS)
        ]
        if not there:
            lacking.append(f"project {number} has none that is active and tells all that is needed")
        elif not any(hook.headers.get(SECRET_HEADER) == secret.get_secret_value() for hook in there):
            foreign.append(f"that of project {number} bears another secret, and is not listened to")
    if lacking or foreign:
        said = f"to {url}{HOOK}: {', '.join([*foreign, *lacking])}"
        return Found("bad" if foreign else "doubtful", said, "run: ls-propagate sync, which sets them up")
    return good(f"both projects tell {url}{HOOK}")


def images(case: Case) -> Found:
    """All images are at hosts that are trusted, and one can be read."""
    locations = [task.location for task in case.store.source_tasks()]
    if not locations:
        tasks = islice(case.gateway.tasks(case.connection.project, ["data"]), LOOKED_AT)
        told = (task["data"].get(case.labeling.field) for task in tasks)
        locations = [location for location in told if isinstance(location, str) and location]
    if not locations:
        return doubtful(f"no task has one in {case.labeling.field!r}", "import images into the project")
    addresses = Addresses(f"{case.gateway.url}/", case.settings.image_hosts)
    hosts = Counter(map(_host, locations))
    refused = {}
    for host, location in {_host(location): location for location in reversed(locations)}.items():
        try:
            addresses.of(location)
        except ImageError as error:
            refused[host] = str(error)
    if refused:
        count = sum(hosts[host] for host in refused)
        named = ", ".join(f"{host or 'no host'} ({hosts[host]})" for host in list(refused)[:NAMED])
        reason, _, remedy = next(iter(refused.values())).rpartition("; ")
        return bad(f"{count} of {len(locations)} are not read, by host: {named}; {reason}", remedy)
    content = case.gateway.read_file(locations[0])
    height, width = decode(locations[0], content).shape[:2]
    return good(f"all {len(locations)} are at trusted hosts; one was read, {width} × {height}")


def _host(location: str) -> str:
    """Scheme and host of an image; empty for a path."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return "no address"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme or parts.netloc else ""
