"""A model behind OpenAI's protocol, asked by the real client over real HTTP: what works, and what servers do wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from email.utils import formatdate

import pytest

from recipes.evaluate import server
from recipes.evaluate.main import evaluate_command
from recipes.evaluate.results import read_records
from tests.builders.configs import ROOT
from tests.builders.openai_server import Reply, completion, serving
from tests.recipes.evaluate.test_inputs import configured, refusal
from workers.rollout.generation import SamplingParams

SECRET = "sk-not-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(server.KEY, SECRET)


def evaluated(directory, served, *overrides):
    """(exit code, summary or {}, records) of an evaluation of the starter's first problems by a server."""
    cfg = configured(
        "preset=starter", "engine=openai", f"base_url={served.url}", "model=served", "limit=6", "samples=2",
        "server.concurrency=4", *overrides,
    )  # fmt: skip
    code = evaluate_command(cfg, directory, "starter")
    path = directory / "summary.json"
    return code, json.loads(path.read_text()) if path.exists() else {}, list(read_records(directory / "results.jsonl"))


def failures(summary):
    return [(entry["problems"], entry["reason"]) for entry in summary["failures"]]


def test_a_server_is_asked_once_for_each_response_with_its_own_seed(tmp_path):
    def answer(body, number):
        return completion(f"\\boxed{{{body['seed'] % 10}}}", tokens=11, stop="length" if body["seed"] % 2 else "stop")

    with serving(answer) as served:
        code, summary, records = evaluated(tmp_path, served)
    assert code == 0 and summary["status"] == "done" and summary["failures"] == []
    assert len(served.asked) == 12 == len({body["seed"] for body in served.asked})
    body = served.asked[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (1.0, 0.9, 96, "served")
    assert body["messages"][0]["content"].endswith("within \\boxed{}.") and "top_k" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    responses = [r for record in records for r in record["responses"]]
    assert {r["tokens"] for r in responses} == {11} and {r["stop"] for r in responses} == {"length", "completed"}
    assert summary["sampled"][0]["tokens"] == 12 * 11 and summary["sampled"][0]["seconds"] > 0
    assert summary["runs"][0]["kind"] == "server" and served.url in json.dumps(summary["config"])
    # Whatever is written, the key is not.
    assert served.keys == {f"Bearer {SECRET}"}
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET in p.read_text()]


def test_thoughts_that_are_kept_apart_are_part_of_the_response(tmp_path):
    with serving(lambda body, number: completion("\\boxed{7}", reasoning_content="Wait. \\boxed{1}")) as served:
        _, _, records = evaluated(tmp_path, served, "limit=1")
    first = records[0]["responses"][0]
    assert first["text"] == "<think>\nWait. \\boxed{1}\n</think>\n\n\\boxed{7}" and first["extracted"] == "7"


@pytest.mark.parametrize("date", [False, True])
def test_a_busy_server_is_asked_again_when_it_says(tmp_path, date):
    began, times = time.time(), []

    def answer(body, number):
        times.append(time.time())
        if number == 0:
            after = formatdate(time.time() + 2.0, usegmt=True) if date else "1.2"
            return Reply({"error": "slow down"}, 429, {"Retry-After": after})
        return completion()

    with serving(answer) as served:
        code, _, records = evaluated(tmp_path, served, "server.concurrency=1", "limit=2")
    assert code == 0 and len(records) == 2 and len(served.asked) == 5
    assert times[1] - times[0] >= (0.9 if date else 1.1) and time.time() - began < 60


def test_a_server_that_asks_to_wait_for_hours_is_not_waited_for(tmp_path):
    with serving(lambda body, number: Reply({}, 429, {"Retry-After": "86400"})) as served:
        code, _, records = evaluated(tmp_path, served)
    assert code == 1 and records == [] and len(served.asked) <= 8


GARBAGE = {
    "no JSON": (Reply(b"<html>\x1b[31mBad Gateway</html>"), "no JSON: <html> [31mBad Gateway"),
    "no choices": (Reply({"choices": [], "usage": {"completion_tokens": 1}}), "without choices, message or usage"),
    "a list": (Reply([1, 2]), "without choices, message or usage"),
    "no usage": (Reply({"choices": [{"message": {"content": "x"}}]}), "without choices, message or usage"),
    "content of numbers": (
        Reply({"choices": [{"message": {"content": [1]}}], "usage": {"completion_tokens": 1}}), "of another type"
    ),
    "tokens of text": (
        Reply({"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": "1"}}), "of another type"
    ),
    "a refusal": (Reply({"error": {"message": "context too long"}}, 400), "status 400: "),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_a_garbage_answer_is_a_failure_of_its_problem_alone(name):
    reply, said = GARBAGE[name]
    with serving(lambda body, number: reply if body["messages"][0]["content"] == "1" else completion()) as served:
        found = dict(asked(server.ServerOptions(served.url, 2, 20.0, 0, 2), 4))
    failed = found.pop(1)
    assert said in failed.reason and failed.reason.isprintable()
    assert list(found.values()) == [[("so \\boxed{7}", 5, "completed")]] * 3


def test_problems_without_an_answer_are_counted_and_asked_again_later(tmp_path):
    bad = []  # one problem's text

    def answer(body, number):
        bad[:] = bad or [body["messages"][0]["content"]]
        return Reply(b"<html>") if body["messages"][0]["content"] == bad[0] else completion()

    with serving(answer) as served:
        code, summary, records = evaluated(tmp_path, served)
        assert code == 1 and summary["status"] == "failed" and len(records) == 5
        assert failures(summary) == [(1, "an answer that is no JSON: <html>")]
        assert any("1 problem without an answer" in warning for warning in summary["warnings"])
        assert any("5 of 6 problems" in warning for warning in summary["warnings"])
        served.answer = lambda body, number: completion()
        before = len(served.asked)
        code, summary, records = evaluated(tmp_path, served)
    assert code == 0 and summary["status"] == "done" and len(records) == 6
    assert len(served.asked) == before + 2  # only what was missing


def test_a_server_that_only_fails_ends_the_evaluation_and_keeps_what_it_answered(tmp_path, capfd):
    with serving(lambda body, number: completion() if number < 4 else Reply(b"", 500)) as served:
        overrides = ["server.concurrency=1", "server.retries=0", "server.give_up_after=3"]
        code, summary, records = evaluated(tmp_path, served, *overrides)
    assert code == 1 and len(records) == 2 and summary["status"] == "failed"
    assert failures(summary) == [(3, "status 500: nothing; asked 1 times")]
    said = capfd.readouterr().out.replace("\n", "")
    assert f"{served.url} gave no answer to 3 problems in a row" in said


def test_a_stalled_server_is_noticed_and_named(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(server, "QUIET_S", 0.3)

    def answer(body, number):
        if number >= 2:
            served.release.wait(30)
        return completion()

    with serving(answer) as served:
        began = time.time()
        code, _, _ = evaluated(tmp_path, served, "server.timeout_s=1.5")
    assert code == 1 and time.time() - began < 25
    said = capfd.readouterr().out.replace("\n", "")
    assert f"{served.url} has stalled: nothing for " in said and "nothing from the server for" in said


def test_an_answer_that_drips_ends_at_the_deadline():
    """Each byte comes in time, the answer never does."""
    with serving() as served:

        def drip():
            for _ in range(300):
                yield b" "
                served.release.wait(0.05)

        served.answer = lambda body, number: Reply(drip(), length=10_000)
        began = time.time()
        with pytest.raises(server.ServerError, match="has stalled"):
            list(asked(server.ServerOptions(served.url, 2, 1.0, 0, 1), 1))
    assert time.time() - began < 10


def test_an_endless_answer_is_cut(monkeypatch):
    monkeypatch.setattr(server, "MOST_BYTES", 2**20)
    with serving(lambda body, number: Reply((b"x" * 2**16 for _ in range(64)), length=2**40)) as served:
        ((_, found),) = asked(server.ServerOptions(served.url, 1, 20.0, 0, 2), 1)
    assert found == server.Failed("an answer of more than 1 MiB")


def test_two_models_of_a_server_are_two(tmp_path):
    with serving() as served:
        served.models = ("a", "b")
        code, summary, records = evaluated(tmp_path, served, "model=[a,b]", "limit=2")
    assert code == 0 and len(records) == 4 and [run["label"] for run in summary["runs"]] == ["a", "b"]
    assert {body["model"] for body in served.asked} == {"a", "b"} and len(summary["differences"]) > 0


def asked(options, problems, samples=1):
    tasks = ((n, ([{"role": "user", "content": str(n)}], list(range(samples)))) for n in range(problems))
    return server.sample_from_server(options, "served", SamplingParams(1.0, 0.9, -1, 8, logprobs=False), {}, tasks)


def test_a_connection_that_breaks_is_made_again(tmp_path):
    with serving(lambda body, number: Reply(b"{", length=100) if number == 0 else completion()) as served:
        found = list(asked(server.ServerOptions(served.url, 1, 20.0, 2, 1), 2))
    assert [answers for _, answers in found] == [[("so \\boxed{7}", 5, "completed")]] * 2 and len(served.asked) == 3


def test_an_interruption_loses_few_problems():
    """Requests are sent problem by problem: 32 open ones of 16 responses each belong to three or four problems."""
    with serving() as served:
        served.answer = lambda body, number: completion() if number < 200 else served.release.wait(60) and completion()
        answers = asked(server.ServerOptions(served.url, 32, 600.0, 2, 1), 50, 16)
        complete = [next(answers) for _ in range(9)]
        answers.close()
        begun = {body["messages"][0]["content"] for body in served.asked}
    assert len(begun) - len(complete) <= 5


def test_stopping_does_not_wait_for_open_requests():
    with serving() as served:
        served.answer = lambda body, number: completion() if number == 0 else served.release.wait(60) and completion()
        answers = asked(server.ServerOptions(served.url, 4, 600.0, 2, 1), 50)
        assert next(answers)[0] is not None
        began = time.time()
        answers.close()
        assert time.time() - began < 5


def test_sigterm_ends_an_evaluation_in_order(tmp_path):
    """What a scheduler sends: the summary of what is complete, and no wait for what is open."""
    with serving() as served:
        served.answer = lambda body, number: completion() if number < 4 else served.release.wait(120) and completion()
        process = subprocess.Popen(
            [sys.executable, "-m", "recipes.evaluate.main", "preset=starter", "engine=openai", "model=served",
             f"base_url={served.url}", "limit=6", "samples=1", "server.concurrency=4", f"hydra.run.dir={tmp_path}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        deadline = time.time() + 120
        while len(list(read_records(tmp_path / "results.jsonl"))) < 4:
            assert time.time() < deadline and process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        process.terminate()
        console, _ = process.communicate(timeout=300)
    assert process.returncode == 130, console
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "stopped" and summary["counts"][0]["problems"] == 4


def test_a_refused_key_is_said_without_the_key(tmp_path, capfd):
    with serving(lambda body, number: Reply({"error": f"Incorrect API key: {SECRET}"}, 401)) as served:
        code, _, _ = evaluated(tmp_path, served)
    out, err = capfd.readouterr()
    assert code == 1 and f"set {server.KEY}" in " ".join(out.split()) and SECRET not in out + err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET in p.read_text()]


def test_wrong_settings_are_refused_before_anything_is_asked(tmp_path):
    with serving() as served:
        address = f"base_url={served.url}"
        for overrides, said in (
            ([], "needs base_url=, such as"),
            (["base_url=localhost:8000"], "must be an address such as http://"),
            (["base_url='http://me:sk-1@host/v1'"], "the key in OPENAI_API_KEY"),
            ([address, "model=other"], f"model=other: {served.url} serves served; name one of these"),
            ([address, "model=served", "server.concurrency=0"], "server.concurrency=0"),
            ([address, "model=served", "checkpoints=all"], "a server has no checkpoints"),
            (
                [address, "model=served", "teacher.context=solution", "teacher.exposures=[0.5]"],
                "give the served model's tokenizer with tokenizer=",
            ),
            (["base_url=http://127.0.0.1:9/v1", "model=served"], "is it running?"),
        ):
            said_all = refusal(tmp_path, "engine=openai", *overrides)
            assert said in said_all and "sk-1" not in said_all
        assert "only engine=openai asks a server" in refusal(tmp_path, "base_url=http://localhost/v1")
        assert served.asked == []


def test_the_teacher_behind_a_server_reads_the_reference(tmp_path):
    with serving() as served:
        _, summary, _ = evaluated(tmp_path, served, "limit=2", "samples=1", "teacher.context=solution")
    texts = [body["messages"][0]["content"] for body in served.asked]
    assert len(texts) == 4 and sum("=== Reference Solution Begin ===" in text for text in texts) == 2
    assert {run["label"] for run in summary["runs"]} == {"served", "served teacher"}
    assert len({run["model"] for run in summary["runs"]}) == 2
