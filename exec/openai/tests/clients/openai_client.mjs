// OpenAI's own client for Node against a server over a script. usage: openai_client.mjs URL
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const say = (content) => [{ role: "user", content }];

const whole = await client.chat.completions.create({ model: "script", messages: say("Hi") });
assert.equal(whole.choices[0].message.content, "Hello from MLOC.");

let text = "";
const stream = await client.chat.completions.create({ model: "script", messages: say("Hi"), stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, "Hello from MLOC.");

const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const runner = client.chat.completions.stream({ model: "script", messages: say("weather?"), tools });
const called = await runner.finalChatCompletion();
assert.deepEqual(
  called.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments)),
  [{ city: "Paris" }, { city: "Rome" }],
);

const schema = { type: "object", properties: { answer: { type: "integer" } } };
const format = { type: "json_schema", json_schema: { name: "answer", schema } };
const formed = await client.chat.completions.create({ model: "script", messages: say("Hi"), response_format: format });
assert.deepEqual(JSON.parse(formed.choices[0].message.content), { answer: 42 });

const made = await client.embeddings.create({ model: "script", input: "Hi" });
assert.deepEqual(made.data[0].embedding.map((x) => Math.round(x * 10)), [6, 8, 0, 0]);

const response = await client.responses.create({ model: "script", input: "Hi" });
assert.equal(response.output_text, "Hello from MLOC.");
const kinds = [];
for await (const event of await client.responses.create({ model: "script", input: "Hi", stream: true })) kinds.push(event.type);
assert.equal(kinds.at(0), "response.created");
assert.equal(kinds.at(-1), "response.completed");

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["script", "script:pirate"]);
await assert.rejects(client.chat.completions.create({ model: "other", messages: say("Hi") }), OpenAI.NotFoundError);

const endless = await client.chat.completions.create({ model: "script", messages: say("endless"), stream: true });
for await (const _ of endless) break;
console.log("ok");
