//! What a model pushes for one image, read as updates; and the image file that is made of it, with its metadata.
//! Nothing of how either is sent.

use std::sync::Arc;

use aihost_plugin_api::task::{FinishReason, ImageFinish, ImageRequest};
use tokio::sync::mpsc;

use super::blocking::run_blocking;
use super::generate::broken_off;
use crate::domain::{Failure, FailureKind, ModelId};
use crate::media::image::{AssembledImage, Image, ImageAssembler, ImageEncoding, TextChunks};
use crate::worker::Output;

/// The output of one image. Dropping it cancels.
pub(super) struct ImageOutput {
    output: mpsc::Receiver<Output>,
    assembler: ImageAssembler,
    finished: Option<Image>,
}

/// What can be told of an image under way.
pub(super) enum ImageUpdate {
    /// So many steps of so many are done.
    Progress { done: u64, total: u64 },
    /// An unfinished image, the n-th.
    Partial(Image, u32),
    /// All of it, and how it was made. The last.
    Finished(Image, ImageFinish),
}

impl ImageOutput {
    pub(super) fn new(output: mpsc::Receiver<Output>, assembler: ImageAssembler) -> Self {
        Self { output, assembler, finished: None }
    }

    /// The next thing that can be told.
    pub(super) async fn next(&mut self) -> Result<ImageUpdate, Failure> {
        loop {
            match self.output.recv().await {
                Some(Output::Bytes(payload)) => match self.assembler.take(&payload)? {
                    Some(AssembledImage { image, partial: Some(index) }) => {
                        return Ok(ImageUpdate::Partial(image, index));
                    }
                    Some(AssembledImage { image, partial: None }) => self.finished = Some(image),
                    None => {}
                },
                Some(Output::Progress { done, total }) => return Ok(ImageUpdate::Progress { done, total }),
                Some(Output::Done(Ok(summary))) => return self.finish(&summary),
                Some(Output::Done(Err(failure))) => return Err(failure),
                Some(Output::Event(_) | Output::Http(_)) => {}
                None => return Err(broken_off()),
            }
        }
    }

    fn finish(&mut self, summary: &[u8]) -> Result<ImageUpdate, Failure> {
        let wrong = |message: String| Failure::new(FailureKind::Internal, message);
        let finish: ImageFinish = serde_json::from_slice(summary)
            .map_err(|error| wrong(format!("the plugin ended with what is no image summary: {error}")))?;
        if finish.reason == FinishReason::Cancelled {
            return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
        }
        let image = self.finished.take();
        let image = image.ok_or_else(|| wrong("the plugin ended without a finished image".to_owned()))?;
        Ok(ImageUpdate::Finished(image, finish))
    }
}

/// Makes the files of one request's images.
pub(super) struct ImageFileWriter {
    /// Which model draws them.
    pub(super) model: ModelId,
    /// What was asked of it.
    pub(super) request: Arc<ImageRequest>,
    /// The kind of file they become.
    pub(super) encoding: ImageEncoding,
}

impl ImageFileWriter {
    /// The metadata that says how an image was made. The guidance is there if the request named one.
    pub(super) fn metadata(&self, finish: &ImageFinish) -> TextChunks {
        let ImageRequest { prompt, guidance, .. } = &*self.request;
        let mut chunks = vec![
            ("prompt", prompt.clone()),
            ("model", self.model.to_string()),
            ("seed", finish.seed.to_string()),
            ("steps", finish.steps.to_string()),
            ("size", format!("{}x{}", finish.width, finish.height)),
        ];
        chunks.extend(guidance.map(|guidance| ("guidance", guidance.to_string())));
        chunks
    }

    /// The file of an image, written where it holds nobody up.
    pub(super) async fn file(&self, image: Image, metadata: TextChunks) -> Result<Vec<u8>, Failure> {
        let encoding = self.encoding;
        run_blocking(move || image.encode(encoding, &metadata)).await
    }
}
