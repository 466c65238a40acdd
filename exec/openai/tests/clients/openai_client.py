"""OpenAI's own client for Python against a server over a script. usage: openai_client.py URL"""

import base64
import struct
import sys

import openai

url = sys.argv[1]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
hi = [{"role": "user", "content": "Hi"}]

# Whole and streamed.
whole = client.chat.completions.create(model="script", messages=hi, seed=1, temperature=0.5)
assert whole.choices[0].message.content == "Hello from MLOC.", whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + 16, whole.usage
stream = client.chat.completions.create(
    model="script", messages=hi, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello from MLOC."
assert chunks[-1].usage.completion_tokens == 16 and not chunks[-1].choices
with_logprobs = client.chat.completions.create(model="script", messages=hi, logprobs=True, top_logprobs=3)
assert len(with_logprobs.choices[0].logprobs.content) == 16
assert len(with_logprobs.choices[0].logprobs.content[0].top_logprobs) == 3

# Calls, whole, streamed and by the client's own helper that puts deltas together.
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ask = [{"role": "user", "content": "weather?"}]
called = client.chat.completions.create(model="script", messages=ask, tools=[weather])
assert called.choices[0].finish_reason == "tool_calls"
calls = called.choices[0].message.tool_calls
assert [c.function.arguments for c in calls] == ['{"city": "Paris"}', '{"city": "Rome"}'], calls
assert len({c.id for c in calls}) == 2
with client.chat.completions.stream(model="script", messages=ask, tools=[weather]) as streamed:
    for _ in streamed:
        pass
    final = streamed.get_final_completion()
assert [c.function.arguments for c in final.choices[0].message.tool_calls] == ['{"city": "Paris"}', '{"city": "Rome"}']
history = ask + [called.choices[0].message.model_dump(exclude_none=True)]
history += [{"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in calls]
client.chat.completions.create(model="script", messages=history + hi)

# A schema, also as the client makes it of a class.
import pydantic


class Answer(pydantic.BaseModel):
    answer: int


parsed = client.chat.completions.parse(model="script", messages=hi, response_format=Answer)
assert parsed.choices[0].message.parsed == Answer(answer=42)

# Completions with vLLM's additions.
text = client.completions.create(
    model="script", prompt="Hi", max_tokens=5, logprobs=2, extra_body={"top_k": 5, "min_tokens": 1, "ignore_eos": True}
)
assert text.choices[0].text == "Hello" and len(text.choices[0].logprobs.token_logprobs) == 5
choice = client.completions.create(model="script", prompt="Hi", extra_body={"structured_outputs": {"choice": ["yes"]}})
assert choice.choices[0].text == "yes"

# Embeddings: the client asks for base64 unless told otherwise.
made = client.embeddings.create(model="script", input=["Hi", "you"])
assert [round(x, 3) for x in made.data[0].embedding] == [0.6, 0.8, 0, 0], made
raw = client.embeddings.create(model="script", input="Hi", encoding_format="base64", dimensions=2)
assert len(base64.b64decode(raw.data[0].embedding)) == 2 * struct.calcsize("f")

# Responses.
response = client.responses.create(model="script", input="Hi", instructions="Be brief.")
assert response.output_text == "Hello from MLOC." and response.status == "completed" and response.store is False
tool = {"type": "function", "strict": False, **weather["function"]}
response = client.responses.create(model="script", input="weather?", tools=[tool])
assert [item.type for item in response.output] == ["message", "function_call", "function_call"], response.output
items = [{"role": "user", "content": "weather?"}] + [item.model_dump(exclude_none=True) for item in response.output]
items += [
    {"type": "function_call_output", "call_id": i.call_id, "output": "sunny"}
    for i in response.output
    if i.type == "function_call"
]
client.responses.create(model="script", input=items + [{"role": "user", "content": "Hi"}])
with client.responses.stream(model="script", input="weather?", tools=[tool]) as events:
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
    assert len(events.get_final_response().output) == 3
cut = client.responses.create(model="script", input="Hi", max_output_tokens=2)
assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
parsed = client.responses.parse(model="script", input="Hi", text_format=Answer)
assert parsed.output_parsed == Answer(answer=42)

# Every field that the client knows has its row.
import json
import urllib.request

from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

document = json.load(urllib.request.urlopen(url + "/openapi.json"))
for path, params in [
    ("/v1/chat/completions", chat_create_params.CompletionCreateParamsNonStreaming),
    ("/v1/completions", completion_create_params.CompletionCreateParamsNonStreaming),
    ("/v1/embeddings", embedding_create_params.EmbeddingCreateParams),
    ("/v1/responses", response_create_params.ResponseCreateParamsNonStreaming),
]:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = set(params.__required_keys__ | params.__optional_keys__)
    assert len(fields) > 4 and fields <= set(body["properties"]), (path, fields - set(body["properties"]))

# Models and adapters.
assert [m.id for m in client.models.list()] == ["script", "script:pirate"]
assert client.models.retrieve("script:pirate").id == "script:pirate"
assert client.chat.completions.create(model="script:pirate", messages=hi).model == "script:pirate"


# Errors come as the client's own.
def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


error = refused(openai.NotFoundError, lambda: client.chat.completions.create(model="other", messages=hi))
assert error.code == "model_not_found" and error.param == "model"
error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model="script", messages=hi, temperature=-1))
assert error.param == "temperature" and error.type == "invalid_request_error"
error = refused(
    openai.APIError,
    lambda: list(client.chat.completions.create(model="script", messages=[{"role": "user", "content": "break"}], stream=True)),
)
assert "device failed" in error.message, error

# A client that closes a stream early.
stream = client.chat.completions.create(model="script", messages=[{"role": "user", "content": "endless"}], stream=True)
next(iter(stream))
stream.close()
print("ok", openai.__version__)
