"""A text service: says its phrases, in the form of a chat completion."""

from core.base_service import BaseService
from pydantic import BaseModel


class Message(BaseModel):
    role: str
    content: str = ""


class ChatRequest(BaseModel):
    model: str = "phrases"
    messages: list[Message]


class PhrasesService(BaseService):
    def __init__(self):
        super().__init__(name="phrases", port=8101)
        self.phrases = None

    async def initialize(self):
        self.phrases = ["Well begun is half done.", "Still waters run deep."]
        self.logger.info("%d phrases are loaded", len(self.phrases))

    def create_app(self):
        @self.app.post("/v1/chat/completions")
        async def chat(request: ChatRequest):
            said = request.messages[-1].content
            text = self.phrases[len(said) % len(self.phrases)]
            return {
                "id": "chatcmpl-phrases",
                "object": "chat.completion",
                "created": 0,
                "model": request.model,
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": len(said.split()), "completion_tokens": len(text.split()), "total_tokens": 0},
            }


service = PhrasesService()

if __name__ == "__main__":
    service.run()
