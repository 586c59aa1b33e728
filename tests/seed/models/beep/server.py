"""A service of its own kind: a tone as a WAV file."""

import io
import math
import struct
import wave

from core.base_service import BaseService
from fastapi import Response
from pydantic import BaseModel

RATE = 8000


class BeepRequest(BaseModel):
    pitch: float = 440.0
    seconds: float = 0.1


class BeepService(BaseService):
    def __init__(self):
        super().__init__(name="beep", port=8103)

    def create_app(self):
        @self.app.post("/v1/beep/generate")
        async def generate(request: BeepRequest):
            file = io.BytesIO()
            with wave.open(file, "wb") as out:
                out.setnchannels(1)
                out.setsampwidth(2)
                out.setframerate(RATE)
                angle = 2 * math.pi * request.pitch / RATE
                samples = (int(20000 * math.sin(angle * n)) for n in range(int(RATE * request.seconds)))
                out.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
            return Response(file.getvalue(), media_type="audio/wav", headers={"x-base": self.origin})


service = BeepService()

if __name__ == "__main__":
    service.run()
