"""A small OpenAI-compatible embeddings server for BERT sentence encoders such as all-MiniLM-L6-v2.

    python examples/embeddings_server.py --model FOLDER --port 8081 --name all-MiniLM-L6-v2

FOLDER holds config.json, tokenizer.json and model.safetensors, and perhaps sentence_bert_config.json and
1_Pooling/config.json. The port is bound before the weights are read; GET /health answers 503 until they are.
Standard output gets a line for each. Exit codes: 0 after SIGTERM or SIGINT, 1 if the address cannot be bound,
2 if the folder cannot be loaded.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = np.ndarray[Any, np.dtype[np.float32]]

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_INPUTS = 2048  # OpenAI's own limit for one request
BATCH = 8  # inputs per forward pass: bounds memory, and lets short requests in between


class ModelFolderError(Exception):
    def __init__(self, path: Path, problem: Exception) -> None:
        super().__init__(f"cannot load {path} ({problem!r}); give --model a complete folder of a BERT model")


class RequestError(Exception):
    """What a client did wrong, or must wait for, in OpenAI's words."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}


def erf(x: Array) -> Array:
    """Abramowitz and Stegun, formula 7.1.26: at most 1.5e-7 off, plus float32 rounding."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    series = np.zeros_like(x)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(coefficient)) * t
    return np.copysign(1 - series * np.exp(-x * x), x)


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class EmbeddingModel:
    """Text or token ids to unit vectors: tokenizer, BERT, mean over the tokens, L2 norm. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelFolderError for a folder that is missing, truncated, or of another kind of model."""
        self._turn = threading.Lock()
        _read(folder, self._load)

    def _load(self, folder: Path) -> None:
        self._config = _read(folder / "config.json", _read_config)
        _read(folder / "1_Pooling" / "config.json", _check_pooling)
        limits = _read(folder / "sentence_bert_config.json", _read_optional)
        self.vocabulary, positions = self._config["vocab_size"], self._config["max_position_embeddings"]
        self.max_tokens = min(limits.get("max_seq_length") or positions, positions)
        self._tokenizer = _read(folder / "tokenizer.json", lambda path: Tokenizer.from_file(str(path)))
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.no_padding()  # the file may ask for a fixed length; a batch pads to its own longest
        self._tensors = _read(folder / "model.safetensors", load_file)
        self.embed(self.tokenize(["ready"]))  # shows missing or misshapen tensors now, not to a client

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def embed(self, inputs: list[list[int]]) -> Array:
        """Lists of token ids, none of them empty -> (inputs, width), each row of length 1."""
        batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
        return np.concatenate([self._embed_batch(batch) for batch in batches])

    def _embed_batch(self, batch: list[list[int]]) -> Array:
        lengths = np.array([len(ids) for ids in batch])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.zeros(mask.shape, dtype=np.int64)
        padded[mask] = np.concatenate(batch)
        with self._turn:  # BLAS uses every core already; a second pass at once would only add memory
            hidden = self._forward(padded, mask)
        mean = (hidden * mask[:, :, None]).sum(axis=1) / lengths[:, None].astype(np.float32)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _forward(self, ids: np.ndarray, mask: np.ndarray) -> Array:
        """(batch, tokens) of ids, and of whether there is a token -> (batch, tokens, width)."""
        hidden = self._tensors["embeddings.word_embeddings.weight"][ids]
        hidden = hidden + self._tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = hidden + self._tensors["embeddings.token_type_embeddings.weight"][0]
        hidden = self._normalise("embeddings.LayerNorm", hidden)
        padding = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
        for number in range(self._config["num_hidden_layers"]):
            hidden = self._layer(f"encoder.layer.{number}", hidden, padding)
        return hidden

    def _layer(self, name: str, hidden: Array, padding: Array) -> Array:
        attended = self._dense(f"{name}.attention.output.dense", self._attend(name, hidden, padding))
        hidden = self._normalise(f"{name}.attention.output.LayerNorm", hidden + attended)
        wide = self._dense(f"{name}.intermediate.dense", hidden)
        gelu = wide * np.float32(0.5) * (1 + erf(wide * np.float32(0.5**0.5)))
        return self._normalise(f"{name}.output.LayerNorm", hidden + self._dense(f"{name}.output.dense", gelu))

    def _attend(self, name: str, hidden: Array, padding: Array) -> Array:
        heads = (*hidden.shape[:2], self._config["num_attention_heads"], -1)
        query, key, value = (
            self._dense(f"{name}.attention.self.{part}", hidden).reshape(heads).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) * np.float32(query.shape[-1] ** -0.5)
        return (softmax(scores + padding) @ value).transpose(0, 2, 1, 3).reshape(hidden.shape)

    def _dense(self, name: str, x: Array) -> Array:
        # Flattened to two dimensions: numpy multiplies a stack of matrices one by one.
        flat = x.reshape(-1, x.shape[-1]) @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]
        return flat.reshape(*x.shape[:-1], -1)

    def _normalise(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(self._config["layer_norm_eps"]))
        return scaled * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except ModelFolderError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise ModelFolderError(path, error) from error


def _read_config(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_bytes())
    if (config.get("model_type"), config.get("hidden_act")) != ("bert", "gelu"):
        raise ValueError("it is not BERT with GELU, and this server runs nothing else")
    return config


def _read_optional(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.exists() else {}


def _check_pooling(path: Path) -> None:
    pooling = _read_optional(path)
    modes = [mode for mode in pooling if mode.startswith("pooling_mode_") and pooling[mode]]
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise ValueError(f"it asks for {modes}, and this server pools by the mean alone")


def read_inputs(given: object, model: EmbeddingModel) -> list[list[int]]:
    """A request's `input` as token ids. Ids that the client sent are used as they are, cut to the limit."""
    inputs = given if isinstance(given, list) and not _is_tokens(given) else [given]
    if 0 < len(inputs) <= MAX_INPUTS and all(isinstance(text, str) and text for text in inputs):
        try:
            return model.tokenize([text.encode().decode() for text in inputs])
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise RequestError(f"'input' is not Unicode ({error.reason}); send whole characters") from error
    if not 0 < len(inputs) <= MAX_INPUTS or not all(_is_tokens(tokens) for tokens in inputs):
        allowed = f"a text, up to {MAX_INPUTS} texts, a list of token ids, or up to {MAX_INPUTS} such lists"
        raise RequestError(f"'input' must be {allowed}, none of them empty; send one of these")
    if not all(0 <= token < model.vocabulary for tokens in inputs for token in tokens):
        raise RequestError(f"a token id in 'input' is unknown; send ids from 0 to {model.vocabulary - 1}")
    return [tokens[: model.max_tokens] for tokens in inputs]


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


class Handler(BaseHTTPRequestHandler):
    server: EmbeddingsServer
    protocol_version = "HTTP/1.1"
    timeout = 75  # seconds a connection may idle: longer than the pools of usual clients keep one
    wbufsize = -1  # head and body leave in one write
    disable_nagle_algorithm = True
    error_content_type = "application/json"  # of what http.server itself refuses
    error_message_format = '{"error": {"message": "%(explain)s", "type": "invalid_request_error"}}'

    def do_GET(self) -> None:
        self._answer({"/health": self._health, "/v1/models": self._models})

    def do_POST(self) -> None:
        self._answer({"/v1/embeddings": self._embeddings})

    def _answer(self, routes: dict[str, Callable[[bytes], dict[str, Any]]]) -> None:
        try:
            body = self._read_body()  # also where nobody wants it, or it would be taken for the next request
            route = routes.get(self.path.partition("?")[0], self._no_route)
            self._send(200, route(body))
        except RequestError as error:
            self._send(error.status, error.body)

    def _read_body(self) -> bytes:
        self.wfile.flush()  # "100 Continue" may wait there, and the client for it
        body = b""
        try:
            if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                return self._read_part(int(self.headers.get("Content-Length", 0)))
            while size := int(self.rfile.readline(100).partition(b";")[0], 16):
                body += self._read_part(size, already=len(body))
                self.rfile.readline(100)
            while self.rfile.readline(10_000).strip():
                pass  # trailers
        except ValueError as error:
            self.close_connection = True
            raise RequestError(f"the body's length is malformed ({error}); send it as HTTP/1.1 says") from error
        return body

    def _read_part(self, size: int, already: int = 0) -> bytes:
        if size < 0 or size + already > MAX_BODY_BYTES:
            self.close_connection = True
            raise RequestError(f"the body exceeds {MAX_BODY_BYTES} bytes; send fewer inputs at once", status=413)
        return self.rfile.read(size)

    def _no_route(self, _body: bytes) -> dict[str, Any]:
        known = "GET /health, GET /v1/models or POST /v1/embeddings"
        raise RequestError(f"there is no {self.command} {self.path}; use {known}", status=404)

    def _health(self, _body: bytes) -> dict[str, Any]:
        return {"status": "ok"} if self._model() else {}

    def _models(self, _body: bytes) -> dict[str, Any]:
        card = {
            "id": self.server.name,
            "object": "model",
            "created": self.server.created,
            "owned_by": "local",
        }
        return {"object": "list", "data": [card]}

    def _embeddings(self, body: bytes) -> dict[str, Any]:
        model, request = self._model(), self._parse(body)
        inputs = read_inputs(request.get("input"), model)
        rows = model.embed(inputs).astype("<f4")
        values = rows.tolist()
        if request.get("encoding_format") == "base64":
            values = [base64.b64encode(row.tobytes()).decode() for row in rows]
        data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
        tokens = sum(len(ids) for ids in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.server.name, "usage": usage}

    def _parse(self, body: bytes) -> dict[str, Any]:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON ({error}); send an object with 'input'") from error
        if not isinstance(request, dict):
            raise RequestError("the body is no JSON object; send one with the field 'input'")
        if (asked := request.get("model") or self.server.name) != self.server.name:
            problem = f"the model {asked!r} is not served here; ask for {self.server.name!r}"
            raise RequestError(problem, status=404, code="model_not_found")
        if request.get("encoding_format") not in (None, "float", "base64"):
            raise RequestError("'encoding_format' must be 'float' or 'base64'")
        return request

    def _model(self) -> EmbeddingModel:
        if self.server.model is None:
            raise RequestError("the model is still loading; try again in a second", status=503)
        return self.server.model

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Connection", "close" if self.close_connection else "keep-alive")
        self.end_headers()
        self.wfile.write(payload)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass  # refusals by http.server itself are still logged


class EmbeddingsServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128
    model: EmbeddingModel | None = None

    def __init__(self, address: tuple[str, int], name: str) -> None:
        super().__init__(address, Handler)
        self.name, self.created = name, int(time.time())

    def load(self, folder: Path) -> None:
        """Ends `serve_forever` if the folder cannot be loaded."""
        try:
            self.model = EmbeddingModel(folder)
            print(f"ready: {self.name}", flush=True)
        except ModelFolderError as error:
            print(f"error: {error}", file=sys.stderr)
        finally:
            if self.model is None:
                self.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that goes away is no fault here
            super().handle_error(request, client_address)


def main() -> int:
    # At once, from any state: an ordinary exit would unwind threads that are inside BLAS or the tokenizer.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    parser = argparse.ArgumentParser(description="Serve POST /v1/embeddings from a BERT sentence encoder.")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="the model's files")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8081, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--name", help="the model's name in requests (default: the folder's)")
    arguments = parser.parse_args()
    address = (arguments.host, arguments.port)
    try:
        server = EmbeddingsServer(address, arguments.name or arguments.model.resolve().name)
    except (OSError, OverflowError) as error:
        print(f"error: cannot listen on {address} ({error}); choose another --host or --port", file=sys.stderr)
        return 1
    with server:
        print(f"listening on http://{arguments.host}:{server.server_address[1]}", flush=True)
        threading.Thread(target=server.load, args=(arguments.model,), daemon=True).start()
        server.serve_forever()
    return 2


if __name__ == "__main__":
    sys.exit(main())
