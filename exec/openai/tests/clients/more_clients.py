"""langchain-openai and litellm against a server over a script. usage: more_clients.py URL"""

import os
import sys

# Its table of prices comes from outside otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
url = sys.argv[1] + "/v1"


def langchain():
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import BaseModel

    class get_weather(BaseModel):
        """Tells the weather"""

        city: str

    class Answer(BaseModel):
        answer: int

    chat = ChatOpenAI(model="script", base_url=url, api_key="none", max_retries=0)
    assert chat.invoke("Hi").content == "Hello from MLOC."
    assert "".join(chunk.content for chunk in chat.stream("Hi")) == "Hello from MLOC."
    calls = chat.bind_tools([get_weather]).invoke("weather?").tool_calls
    assert [call["args"] for call in calls] == [{"city": "Paris"}, {"city": "Rome"}], calls
    assert chat.with_structured_output(Answer).invoke("Hi") == Answer(answer=42)
    vectors = OpenAIEmbeddings(model="script", base_url=url, api_key="none", check_embedding_ctx_length=False)
    assert len(vectors.embed_query("Hi")) == 4
    print("langchain-openai ok")


def litellm():
    import litellm

    litellm.telemetry = False
    common = dict(model="hosted_vllm/script", api_base=url, api_key="none")
    hi = [{"role": "user", "content": "Hi"}]
    assert litellm.completion(messages=hi, **common).choices[0].message.content == "Hello from MLOC."
    chunks = litellm.completion(messages=hi, stream=True, **common)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello from MLOC."
    common["model"] = "openai/script"
    assert litellm.completion(messages=hi, **common).choices[0].message.content == "Hello from MLOC."
    print("litellm ok")


langchain()
litellm()
