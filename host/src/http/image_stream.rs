//! Images as they are made, as server-sent events: progress, unfinished images, the finished one.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::app::unix_seconds;
use super::image_output::{ImageFileWriter, ImageOutput, ImageUpdate};
use super::sse;
use crate::domain::Failure;
use crate::media::image::{Image, TextChunks};

const PROGRESS: &str = "image_generation.progress";
const PARTIAL: &str = "image_generation.partial_image";
const COMPLETED: &str = "image_generation.completed";

/// The events of a streamed answer.
pub(super) struct ImageStream {
    output: ImageOutput,
    writer: ImageFileWriter,
    ended: bool,
}

impl ImageStream {
    pub(super) fn new(output: ImageOutput, writer: ImageFileWriter) -> Self {
        Self { output, writer, ended: false }
    }

    /// The events of an image once it is begun, which they wait for.
    pub(super) fn events(
        begun: impl Future<Output = Result<Self, Failure>> + Send + 'static,
    ) -> BoxStream<'static, Result<Bytes, Failure>> {
        stream::once(begun).map_ok(Self::of_begun).try_flatten().boxed()
    }

    fn of_begun(self) -> BoxStream<'static, Result<Bytes, Failure>> {
        let next = async |mut events: Self| {
            if events.ended {
                return None;
            }
            let event = events.event().await;
            events.ended |= event.is_err();
            Some((event, events))
        };
        stream::unfold(self, next).boxed()
    }

    async fn event(&mut self) -> Result<Bytes, Failure> {
        let mut out = Vec::new();
        match self.output.next().await? {
            ImageUpdate::Progress { done, total } => {
                sse::write_event(&mut out, PROGRESS, &json!({"type": PROGRESS, "done": done, "total": total}));
            }
            ImageUpdate::Partial(image, index) => {
                let mut event = self.image(PARTIAL, image, TextChunks::new()).await?;
                event["partial_image_index"] = json!(index);
                sse::write_event(&mut out, PARTIAL, &event);
            }
            ImageUpdate::Finished(image, finish) => {
                self.ended = true;
                let mut event = self.image(COMPLETED, image, self.writer.metadata(&finish)).await?;
                event["seed"] = json!(finish.seed);
                sse::write_event(&mut out, COMPLETED, &event);
            }
        }
        Ok(out.into())
    }

    /// What OpenAI's events of both kinds say.
    async fn image(&self, name: &str, image: Image, metadata: TextChunks) -> Result<Value, Failure> {
        let size = format!("{}x{}", image.width, image.height);
        let file = self.writer.file(image, metadata).await?;
        Ok(json!({
            "type": name,
            "b64_json": BASE64_STANDARD.encode(file),
            "created_at": unix_seconds(),
            "size": size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self.writer.encoding.format.name(),
        }))
    }
}
