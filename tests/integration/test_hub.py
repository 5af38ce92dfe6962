"""``refine-pl export --push`` against a small server that answers as the hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import command_line
import huggingface_hub
import pytest
import yaml

from refine_pl.commands.hub import write_card


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits, or refuses everything with ``status``."""

    status = 200
    seen: list = []  # noqa: RUF012 - fresh for every server
    files: dict = {}  # noqa: RUF012

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.status != 200:
            return self._answer(self.status, {"error": "refused"})
        answer = {}
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            answer = {"url": f"{self.server.address}/{owner}/{asked['name']}"}
        elif "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": path, **modes} for path in named]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            address = f"{self.server.address}/me/model/commit/1"
            answer = {"commitUrl": address, "commitOid": "1" * 40, "success": True}
        return self._answer(200, answer)

    def do_GET(self):
        self._answer(200, {"sha": "0" * 40, "id": "me/model", "siblings": []})

    def _answer(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command_line.write_documents(folder / "docs")
        config = command_line.write_config(folder / "c.yaml")
        outcome = command_line.run("fit", "--config", config)
        assert outcome.code == 0, outcome.stderr
        (checkpoint,) = folder.glob("runs/**/last.ckpt")
    return checkpoint


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server, online, with a token; its handler keeps what it was sent."""
    handler = type("Own", (Hub,), {"seen": [], "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    yield handler
    server.shutdown()
    server.server_close()


def export(checkpoint, *options):
    return command_line.run("export", "--ckpt_path", checkpoint, "--out", "out", *options)


def test_a_folder_and_its_card_arrive(run, hub):
    outcome = export(run, "--push", "me/model", "--private")
    assert outcome.code == 0, outcome.stderr
    assert "/me/model" in outcome.stdout
    sent = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert hub.files == sent
    assert {"README.md", "config.json", "model.safetensors", "checksums.json"} <= sent.keys()
    created = next(json.loads(body) for path, _, body in hub.seen if path.endswith("create"))
    assert created.get("private") is True or created.get("visibility") == "private"
    assert all(token == "Bearer hf_secret" for _, token, _ in hub.seen)
    card = sent["README.md"].decode()
    meta = yaml.safe_load(card.split("---")[1])
    assert meta["tags"] == ["refine-pl", "delta_net"]
    assert "license" not in meta
    assert 'load_pretrained("me/model")' in card
    assert "hf_secret" not in card
    settings = yaml.safe_load(card.split("## Settings")[1].split("```yaml")[1].split("```")[0])
    assert settings["model"]["num_segments"] == 2
    assert command_line.run("doctor", "--verify", "out").code == 0


@pytest.mark.parametrize(("status", "said"), [(401, "hf auth login"), (403, "may not write")])
def test_what_the_hub_refuses_leaves_the_folder(run, hub, status, said):
    hub.status = status
    outcome = export(run, "--push", "me/model")
    assert outcome.code == 2
    assert said in " ".join(outcome.stderr.split())
    assert "hf upload me/model out" in outcome.stderr
    assert (Path("out") / "model.safetensors").is_file()


def test_a_hub_that_cannot_be_reached_leaves_the_folder(run, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    outcome = export(run, "--push", "me/model")
    assert outcome.code == 2
    assert "the hub cannot be reached" in outcome.stderr
    assert (Path("out") / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--push", "model"], "it names no owner"),
        (["--push", "a/b/c"], "not the name of a repository"),
        (["--push", "me/mo del"], "not the name of a repository"),
        (["--private"], "--private is for --push"),
    ],
)
def test_slips_are_found_before_anything_is_written(run, hub, options, said):
    outcome = export(run, *options)
    assert outcome.code == 2
    assert said in " ".join(outcome.stderr.split())
    assert not Path("out").exists()
    assert not hub.seen


def test_neither_offline_nor_without_a_token(run, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "not logged in" in export(run, "--push", "me/model").stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in export(run, "--push", "me/model").stderr
    assert not Path("out").exists()
    assert not hub.seen


@pytest.mark.parametrize(
    ("base", "named"), [("org/base", "org/base"), ("here", None), (None, None)]
)
def test_the_card_names_a_base_of_the_hub(tmp_path, monkeypatch, base, named):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    own = {"iteration": 7, "backbone": {"model_type": "delta_net"}}
    if base is not None:
        own["adapter"] = {"base": {"path": base}}
    write_card(".", "me/model", {"refine_pl": own}, "last.ckpt")
    text = Path("README.md").read_text()
    meta = yaml.safe_load(text.split("---")[1])
    assert meta.get("base_model") == named
    assert meta["library_name"] == ("refine-pl" if base is None else "peft")
    assert ("PeftModel" in text) == (base is not None)
    Path("README.md").write_text("of the user's own")
    write_card(".", "me/model", {"refine_pl": own}, "last.ckpt")
    assert Path("README.md").read_text() == "of the user's own"
