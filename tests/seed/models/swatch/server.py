"""An image service: a picture of one colour, as PNG in base64."""

import asyncio
import base64
import struct
import zlib

from core.base_service import BaseService
from pydantic import BaseModel


class ImageRequest(BaseModel):
    model: str = "swatch"
    prompt: str
    size: str = "8x8"


class SwatchService(BaseService):
    def __init__(self):
        super().__init__(name="swatch", port=8102)
        self.colours = None

    async def initialize(self):
        await asyncio.sleep(0.2)
        self.colours = {"red": b"\xff\0\0", "green": b"\0\xff\0", "blue": b"\0\0\xff"}

    def create_app(self):
        @self.app.post("/v1/images/generations")
        async def generate(request: ImageRequest):
            width, height = (int(side) for side in request.size.split("x"))
            colour = next((rgb for name, rgb in self.colours.items() if name in request.prompt), b"\x80\x80\x80")
            return {"created": 0, "data": [{"b64_json": base64.b64encode(png(width, height, colour)).decode()}]}


def png(width, height, colour):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + colour * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


service = SwatchService()

if __name__ == "__main__":
    service.run()
