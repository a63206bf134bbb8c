import base64
import json
import math
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest
from safetensors.numpy import load_file

PARAPHRASES = ["How can I reset my password?", "What must I do to get a new password?"]
UNRELATED = "The glacier has lost a third of its ice since 1990."
# The quickstart of sentence-transformers prints these similarities for all-MiniLM-L6-v2.
PUBLISHED = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
PUBLISHED_SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]


def ask(port, method, path, body=None, **options):
    """One request on a connection of its own -> status, decoded body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, **options)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def embed(port, given, **fields):
    status, answer = ask(port, "POST", "/v1/embeddings", json.dumps({"input": given, **fields}))
    assert status == 200, answer
    return answer


def vectors(port, given):
    return np.array([item["embedding"] for item in embed(port, given)["data"]])


@pytest.fixture(scope="module")
def model(embeddings_server, minilm_folder):
    return embeddings_server.EmbeddingModel(minilm_folder)


# The numbers


def test_erf_agrees_with_the_standard_library(embeddings_server):
    x = np.linspace(-6, 6, 20_001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(embeddings_server.erf(x) - exact).max() < 1e-6


def test_similarities_are_the_published_ones(minilm_port):
    found = vectors(minilm_port, PUBLISHED)
    np.testing.assert_allclose(found @ found.T, PUBLISHED_SIMILARITIES, atol=5.1e-5)


def naive_layer_norm(x, weight, bias, epsilon=1e-12):
    return (x - x.mean()) / math.sqrt(x.var() + epsilon) * weight + bias


def naive_embedding(tensors, ids):
    """BERT in float64, one token and one head at a time, with the library's own erf."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def dense(name, rows):
        return np.array([weights[f"{name}.weight"] @ row + weights[f"{name}.bias"] for row in rows])

    def norm(name, rows):
        scale = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return np.array([naive_layer_norm(row, *scale) for row in rows])

    words, places, kinds = (weights[f"embeddings.{k}_embeddings.weight"] for k in ("word", "position", "token_type"))
    rows = norm("embeddings.LayerNorm", [words[token] + places[i] + kinds[0] for i, token in enumerate(ids)])
    for number in range(6):
        layer = f"encoder.layer.{number}"
        query, key, value = (dense(f"{layer}.attention.self.{part}", rows) for part in ("query", "key", "value"))
        mixed = np.zeros_like(rows)
        for head in (slice(start, start + 32) for start in range(0, 384, 32)):
            for i in range(len(ids)):
                powers = np.array([math.exp(query[i, head] @ key[j, head] / math.sqrt(32)) for j in range(len(ids))])
                mixed[i, head] = powers / powers.sum() @ value[:, head]
        rows = norm(f"{layer}.attention.output.LayerNorm", rows + dense(f"{layer}.attention.output.dense", mixed))
        wide = dense(f"{layer}.intermediate.dense", rows)
        gelu = np.array([[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in wide.tolist()])
        rows = norm(f"{layer}.output.LayerNorm", rows + dense(f"{layer}.output.dense", gelu))
    mean = rows.mean(axis=0)
    return mean / math.sqrt(mean @ mean)


def test_forward_pass_agrees_with_a_naive_one(model, minilm_folder):
    ids = model.tokenize([UNRELATED])[0]
    expected = naive_embedding(load_file(minilm_folder / "model.safetensors"), ids)
    np.testing.assert_allclose(model.embed([ids])[0], expected, atol=2e-6)


def test_vectors_are_384_wide_and_of_unit_length(minilm_port):
    found = vectors(minilm_port, [*PARAPHRASES, UNRELATED, "x", " ", "日本語 🦉"])
    assert found.shape == (6, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_paraphrases_are_nearer_than_an_unrelated_sentence(minilm_port):
    first, second, other = vectors(minilm_port, [*PARAPHRASES, UNRELATED])
    assert first @ second > 0.6
    assert max(first @ other, second @ other) < 0.2


def test_batch_of_mixed_lengths_gives_the_vectors_of_one_at_a_time(minilm_port):
    texts = [" ".join([UNRELATED] * repeats) for repeats in (3, 1, 17, 2, 1, 9, 30, 1, 4, 1, 12)] + PARAPHRASES
    alone = np.concatenate([vectors(minilm_port, text) for text in texts])
    np.testing.assert_allclose(vectors(minilm_port, texts), alone, atol=1e-5)


def test_long_text_is_cut_at_max_seq_length(minilm_port):
    answer = embed(minilm_port, ["ice " * 255, "ice " * 9_000])
    assert answer["usage"] == {"prompt_tokens": 512, "total_tokens": 512}
    first, second = (item["embedding"] for item in answer["data"])
    np.testing.assert_allclose(first, second, atol=1e-6)


# The interface


def test_response_has_openai_shape(minilm_port):
    answer = embed(minilm_port, PARAPHRASES, model="minilm", user="someone")
    assert (answer["object"], answer["model"]) == ("list", "minilm")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]


def test_base64_equals_float(minilm_port):
    item = embed(minilm_port, UNRELATED, encoding_format="base64")["data"][0]
    decoded = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
    np.testing.assert_array_equal(decoded, vectors(minilm_port, UNRELATED)[0].astype("<f4"))


def test_token_ids_equal_their_text(minilm_port, model):
    ids = model.tokenize(PARAPHRASES)
    np.testing.assert_allclose(vectors(minilm_port, ids), vectors(minilm_port, PARAPHRASES), atol=1e-6)
    np.testing.assert_allclose(vectors(minilm_port, ids[0]), vectors(minilm_port, PARAPHRASES[0]), atol=1e-6)


def test_health_and_models(minilm_port):
    assert ask(minilm_port, "GET", "/health?probe=1") == (200, {"status": "ok"})
    status, answer = ask(minilm_port, "GET", "/v1/models")
    assert (status, [card["id"] for card in answer["data"]]) == (200, ["minilm"])


NOT_TEXT = [None, 5, 1.5, True, {}, ["a", 1], [1.5], [True], ["\ud800"]]
EMPTY = ["", [], [""], ["a", ""], [[]], [[1], []]]
NOT_TOKENS = [[[1], "a"], [-1], [30522], [[2, 10**30]]]


@pytest.mark.parametrize("given", [*NOT_TEXT, *EMPTY, *NOT_TOKENS, ["a"] * 2049])
def test_input_of_a_bad_shape_is_refused(minilm_port, given):
    status, answer = ask(minilm_port, "POST", "/v1/embeddings", json.dumps({"input": given}))
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "send" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[]", 400),
        (b"[" * 100_000, 400),
        (b'{"input": "a", "encoding_format": "hex"}', 400),
        (b'{"input": "a", "encoding_format": []}', 400),
        (b'{"input": "a", "model": "gpt"}', 404),
        (b'{"input": "a", "model": ["gpt"]}', 404),
    ],
)
def test_bad_body_is_refused(minilm_port, body, status):
    found, answer = ask(minilm_port, "POST", "/v1/embeddings", body)
    assert found == status
    assert answer["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/v1/embeddings"), ("POST", "/v1/completions")])
def test_other_paths_are_not_found(minilm_port, method, path):
    status, answer = ask(minilm_port, method, path, b"{}")
    assert status == 404
    assert f"{method} {path}" in answer["error"]["message"]


def test_other_methods_are_refused_in_json(minilm_port):
    status, answer = ask(minilm_port, "PUT", "/v1/embeddings", b"{}")
    assert status == 501
    assert answer["error"]["message"]


def test_connection_is_kept_alive_also_after_an_error(minilm_port):
    connection = HTTPConnection("127.0.0.1", minilm_port, timeout=30)
    connection.connect()
    before = connection.sock.getsockname()
    for path, status in (("/nothing", 404), ("/v1/embeddings", 200), ("/v1/embeddings", 200)):
        connection.request("POST", path, json.dumps({"input": "a"}))
        response = connection.getresponse()
        response.read()
        assert (response.status, connection.sock.getsockname()) == (status, before)
    connection.close()


def test_chunked_body_is_read(minilm_port):
    parts = iter([b'{"input": ', b'"a"}'])
    status, answer = ask(minilm_port, "POST", "/v1/embeddings", parts, encode_chunked=True)
    assert status == 200, answer


def test_client_that_expects_100_continue_is_answered_before_it_sends(minilm_port):
    with socket.create_connection(("127.0.0.1", minilm_port), timeout=60) as client, client.makefile("rb") as answer:
        head = b"Host: test\r\nContent-Length: 14\r\nExpect: 100-continue\r\n"
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\n" + head + b"\r\n")
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        client.sendall(b'{"input": "a"}')
        assert answer.readline() == b"\r\n"
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 99999999999", 413),
        (b"Content-Length: -1", 413),
        (b"Content-Length: much", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nzz", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nfffffffff", 413),
    ],
)
def test_body_of_a_bad_length_is_refused_and_the_connection_closed(minilm_port, head, status):
    with (
        socket.create_connection(("127.0.0.1", minilm_port), timeout=30) as client,
        client.makefile("rb") as answer,
    ):
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: test\r\n" + head + b"\r\n\r\n")
        assert f" {status} ".encode() in answer.read()


def test_many_clients_at_once_get_the_same_vector(minilm_port):
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda _: vectors(minilm_port, UNRELATED)[0], range(50)))
    np.testing.assert_allclose(found, [found[0]] * 50, atol=1e-6)


# The process


def test_answers_503_until_the_model_is_loaded(embeddings_server):
    with embeddings_server.EmbeddingsServer(("127.0.0.1", 0), "minilm") as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        port = server.server_address[1]
        assert ask(port, "GET", "/health")[0] == 503
        assert ask(port, "POST", "/v1/embeddings", b'{"input": "a"}')[0] == 503
        assert ask(port, "GET", "/v1/models")[0] == 200
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_promptly(start_server, minilm_folder, number):
    with start_server(minilm_folder) as (process, port), socket.create_connection(("127.0.0.1", port)):
        process.send_signal(number)
        assert process.wait(timeout=20) == 0


def run_to_its_end(embeddings_server, *options):
    command = [sys.executable, embeddings_server.__file__, "--port", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_missing_folder_ends_it_with_2(embeddings_server, tmp_path):
    ended = run_to_its_end(embeddings_server, "--model", tmp_path / "absent")
    assert ended.returncode == 2
    assert "config.json" in ended.stderr
    assert "give --model" in ended.stderr


def cut_copy(folder, copy, name, length):
    """The model's files by link, except `name`, which ends after `length` bytes."""
    for source in folder.iterdir():
        (copy / source.name).symlink_to(source)
    (copy / name).unlink()
    (copy / name).write_bytes((folder / name).read_bytes()[:length])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("length", [0, 100, -3])
def test_truncated_file_is_named(embeddings_server, minilm_folder, tmp_path, name, length):
    cut_copy(minilm_folder, tmp_path, name, length)
    with pytest.raises(embeddings_server.ModelFolderError, match=name):
        embeddings_server.EmbeddingModel(tmp_path)


def test_truncated_weights_end_it_with_2(embeddings_server, minilm_folder, tmp_path):
    cut_copy(minilm_folder, tmp_path, "model.safetensors", 1_000_000)
    ended = run_to_its_end(embeddings_server, "--model", tmp_path)
    assert ended.returncode == 2
    assert "model.safetensors" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_config_of_another_shape_is_refused(embeddings_server, minilm_folder, tmp_path):
    cut_copy(minilm_folder, tmp_path, "config.json", 0)
    config = json.loads((minilm_folder / "config.json").read_bytes()) | {"num_hidden_layers": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(embeddings_server.ModelFolderError, match=r"encoder\.layer\.6"):
        embeddings_server.EmbeddingModel(tmp_path)


def test_taken_port_ends_it_with_1(embeddings_server, minilm_port, minilm_folder):
    ended = run_to_its_end(embeddings_server, "--model", minilm_folder, "--port", str(minilm_port))
    assert ended.returncode == 1
    assert "choose another" in ended.stderr
