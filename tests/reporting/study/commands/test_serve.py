"""The command prints the raters' links, serves their pages, and ends as it is told."""

import re
import signal
import socket
import threading

import pytest

from diffusionrl_jax.reporting.study.server import StudyServer
from tests.own_flags import program
from tests.reporting.study.test_server import request

SERVE = "reporting.study.commands.serve"
LINK = re.compile(r"rater (\d+): http://([^/]+)/([^/]+)/")


@pytest.fixture
def terminated(raters, monkeypatch):
    """The status of each rater's page, of a server that is asked for them and then terminated."""
    statuses, serve = [], StudyServer.serve_forever
    before = signal.getsignal(signal.SIGTERM)

    def serve_and_end(server):
        thread = threading.Thread(target=serve, args=(server, 0.05))
        thread.start()
        for rater in raters:
            statuses.append(request(server.server_port, "GET", f"/{rater.token}/")[0])
        server.shutdown()
        thread.join()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(StudyServer, "serve_forever", serve_and_end)
    yield statuses
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("url", ["", "--url=http://study.example.org/"])
def test_a_link_for_each_rater(folder, raters, terminated, url, capsys):
    flags = (f"--folder={folder}", "--raters=3", "--port=0", *filter(None, [url]))
    with program(SERVE, *flags) as serve:
        serve.main([])  # It returns, as after Ctrl-C.
    links = LINK.findall(capsys.readouterr().out)
    assert [(int(number), token) for number, _, token in links] == [
        (rater.number, rater.token) for rater in raters
    ]
    (host,) = {host for _, host, _ in links}
    assert host == "study.example.org" if url else re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", host)
    assert terminated == [200] * 3


def test_a_port_that_is_taken(folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = (f"--folder={folder}", f"--port={port}")
        with program(SERVE, *flags) as serve, pytest.raises(SystemExit) as ended:
            serve.main([])
    assert ended.value.code == 1
    words = f"error: --host=127.0.0.1 --port={port} cannot be listened at .*: choose others"
    assert re.match(words, capsys.readouterr().err)
