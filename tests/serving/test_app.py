"""The server shows the report as it is, answers on this machine only, and says in a sentence what it cannot take."""

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from saetool.artifacts import verify
from saetool.errors import RequestError
from saetool.pipeline import Run
from saetool.serving.app import HOST, MOST_BYTES, listen
from saetool.serving.opening import open_site

from .conftest import png


def test_the_report_is_shown_with_a_link_and_stays_as_it_was(client, place):
    report = place / "run" / "report"
    status, page = client.ask("/index.html")
    assert status == 200
    assert (
        page.decode().replace('\n<a href="photograph.html">Your photograph</a>', "", 1)
        == (report / "index.html").read_text()
    )
    for name in ("assets/core.js", "assets/site.css", "data/site.js", "data/weights.js"):
        assert client.ask(f"/{name}") == (200, (report / name).read_bytes())
    status, page = client.ask("/")
    assert b'id="file"' in page
    assert b'href="photograph.html" aria-current="page"' in page
    assert verify(report) == []


def test_a_picture_is_asked_and_a_latent_switched_off(client, session):
    status, found = client.told("/api/pictures?name=cell%20%3Cb%3E.png", png(4))
    assert status == 200
    assert found["name"] == "cell <b>.png"
    assert found | {"name": "x"} == session.look(png(4), "x")
    latent = found["latents"][0]
    body = json.dumps({"picture": found["picture"], "changes": {str(latent): 0}, "patches": [0]}).encode()
    assert client.told("/api/answers", body) == (200, session.change(found["picture"], {latent: 0.0}, [0]))


@pytest.mark.parametrize(
    "path",
    [
        "/../manifest.json",
        "/%2e%2e/activations/manifest.json",
        "/..%2fconfig.html",
        "/%2fetc%2fpasswd",
        "/nothing.html",
        f"/{'a' * 5000}.html",
        "/%00.html",
    ],
)
def test_nothing_beside_the_report_is_shown(client, path):
    asked = http.client.HTTPConnection(HOST, client.port)
    asked.request("GET", path)
    assert asked.getresponse().status == 404


def test_an_image_of_the_run_is_looked_at_by_its_number(client, place, run):
    row = 7
    status, found = client.told("/api/images", b"7")
    path = run.store.read_table("images.parquet")["path"][row].as_py()
    _, dropped = client.told("/api/pictures", (place / "images" / path).read_bytes())
    assert status == 200
    assert found["name"] == f"image 7: {path}"
    assert {key: value for key, value in found.items() if key not in ("name", "picture")} == {
        key: value for key, value in dropped.items() if key not in ("name", "picture")
    }
    for body, words in (
        (b"40", "there is no image 40: they go from 0 to 39"),
        (b"-1", "no image -1"),
        (b"x", "by its number"),
    ):
        status, said = client.told("/api/images", body)
        assert (status, words in said["error"]) == (400, True)


def test_other_names_and_other_sites_are_refused(client):
    assert client.ask("/index.html", host="evil.example")[0] == 400
    assert client.told("/api/pictures", png(4), origin="http://evil.example")[0] == 403
    assert client.told("/api/pictures", png(4), origin="null")[0] == 403
    assert client.told("/api/pictures", png(4), origin=client.address)[0] == 200


def test_what_cannot_be_taken_is_said_and_the_server_goes_on(client):
    status, found = client.told("/api/pictures?name=a.txt", b"no picture")
    assert status == 422
    assert "a.txt" in found["error"]
    huge = b'{"picture": "a", "changes": {"1": 1' + b"0" * 400 + b"}}"
    endless = b'{"picture": "a", "changes": {"1": 0}, "patches": [1e999]}'
    half = (b"", b"{", b"[]", b'{"picture": 1}', b'{"picture": "a", "changes": {"x": 0}}', b"[" * 100_000)
    for body in (*half, huge, endless):
        status, found = client.told("/api/answers", body)
        assert (status, found["error"][:21]) == (400, "an answer is asked as")
    status, found = client.told("/api/answers", b'{"picture": "gone", "changes": {"1": 0}}')
    assert (status, found["error"]) == (400, "this picture is not kept any more: drop it again.")
    assert client.told("/api/pictures", bytes(MOST_BYTES + 1))[0] == 413
    assert client.ask("/api/pictures")[0] == 404
    assert client.told("/api/pictures", png(4))[0] == 200


def test_an_image_s_number_is_read_to_its_end(client):
    status, found = client.told("/api/images", b"000000000000000000000007")
    assert (status, found["picture"]) == (200, "image 7")
    for body in (b"", b"seven", b"7.5", b"9" * 5000):
        assert client.told("/api/images", body)[0] == 400


@pytest.mark.parametrize("name", ["linked.html", "assets/linked.html"])
def test_a_link_out_of_the_report_is_not_followed(client, place, tmp_path, name):
    (tmp_path / "secret.html").write_text("secret")
    link = place / "run" / "report" / name
    link.symlink_to(tmp_path / "secret.html")
    try:
        assert client.ask(f"/{name}")[0] == 404
    finally:
        link.unlink()


@pytest.mark.parametrize("path", ["/photograph.html", "/index.html", "/data/site.js", "/assets/photograph.js"])
def test_no_other_site_s_page_loads_what_is_here_and_no_browser_keeps_it_for_a_later_run(client, path):
    asked = http.client.HTTPConnection(HOST, client.port)
    asked.request("GET", path)
    reply = asked.getresponse()
    assert reply.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert reply.getheader("Cache-Control") == "no-cache"


def test_an_upload_that_breaks_off_is_no_error(client, caplog):
    logging.getLogger("uvicorn.error").addHandler(caplog.handler)
    with socket.create_connection((HOST, client.port)) as asking:
        asking.send(b"POST /api/pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc")
    time.sleep(0.3)
    assert client.told("/api/pictures", png(4))[0] == 200
    logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
    assert caplog.records == []


def test_a_failure_of_the_model_is_told_and_no_traceback(client, monkeypatch, capfd):
    from saetool.serving.session import Session

    def fail(*given):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(Session, "look", fail)
    assert client.told("/api/pictures", png(4)) == (500, {"error": "the model failed: out of"})
    said = capfd.readouterr().err
    assert "RuntimeError: out of" in said
    assert "Traceback" not in said


def test_a_taken_port_and_one_that_cannot_be_are_said(client):
    with pytest.raises(RequestError, match=f"--port {client.port}: something else listens there already"):
        listen(client.port)
    with pytest.raises(RequestError, match="--port 700000: "):
        listen(700_000)


def test_what_is_not_made_yet_is_said(place, command_line, tmp_path):
    ended = command_line("serve", place / "a.yaml", f"run={tmp_path}/none", "--port", 0)
    assert ended.code == 2
    assert "report: not made yet" in ended.said
    ended = command_line("serve", place / "run", "--port", 0, "--member", "k=4")
    assert ended.code == 2
    assert "is no sweep and holds one model: leave it out." in ended.said
    sweep = ("serve", place / "a.yaml", f"run={tmp_path}/none", "sweep={autoencoder.activation.k: [2, 4]}", "--port", 0)
    assert "--member: name one of the models of " in command_line(*sweep).said
    assert "--member: 'k=3' is none of the models of " in command_line(*sweep, "--member", "k=3").said
    ended = command_line("serve", place / "run", "--port", 0, "--label", "color")
    assert (ended.code, "--label: 'color' is no label" in ended.said) == (2, True)


def test_images_that_are_not_at_hand_leave_the_rest(place, tmp_path, capfd):
    run = Run.load(str(place / "run"), [f"images.source={tmp_path}/gone"])
    assert open_site(run) is not None
    assert "gone" in capfd.readouterr().err


@pytest.mark.slow
def test_the_command_answers_until_ctrl_c_and_ends_well(place):
    command = [sys.executable, "-m", "saetool", "serve", str(place / "run"), "--port", "0"]
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    try:
        assert started.stdout is not None
        address, _, words = started.stdout.readline().partition("  ")
        assert words == "(Ctrl-C ends it)\n"
        port = int(address.removeprefix(f"http://{HOST}:").removesuffix("/photograph.html"))
        asked = http.client.HTTPConnection(HOST, port, timeout=60)
        asked.request("GET", "/photograph.html")
        assert asked.getresponse().status == 200
        asked.close()
        os.kill(started.pid, signal.SIGINT)
        told, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert (started.returncode, told) == (0, "")
    assert "Traceback" not in said
    assert "stopped" not in said


SLOW = """
import sys, time
from saetool.pipeline import Run
from saetool.serving.app import listen, serve
from saetool.serving.opening import open_site
from saetool.serving.session import Session
Session.look = lambda *given: (print("looking", flush=True), time.sleep(3))
place = listen(0)
site = open_site(Run.load(sys.argv[1]))
print(place.getsockname()[1], flush=True)
serve(site, place)
"""


@pytest.mark.slow
def test_ctrl_c_while_the_model_looks_ends_without_a_traceback(place):
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    command, pipe = [sys.executable, "-c", SLOW, str(place / "run")], subprocess.PIPE
    started = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=listening)
    try:
        assert started.stdout is not None
        asked = http.client.HTTPConnection(HOST, int(started.stdout.readline()), timeout=60)
        asked.request("POST", "/api/pictures", b"a picture")
        assert started.stdout.readline() == "looking\n"
        os.kill(started.pid, signal.SIGINT)
        assert asked.getresponse().status == 503
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 0
    assert "Traceback" not in said
