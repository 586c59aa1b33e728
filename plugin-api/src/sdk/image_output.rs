//! Where an image engine puts its images. It cuts them into blocks, counts, and heeds the client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use super::outlet::Outlet;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{FinishReason, ImageBlock, ImageFinish, ImageHeader};

/// Bytes of pixels in one block, rounded to whole rows, at least one: 64 KiB.
const BLOCK_BYTES: usize = 64 * 1024;

/// The answer of one image request. A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone)]
pub struct ImageOutput {
    outlet: Outlet,
    state: Arc<Mutex<ImageState>>,
}

#[derive(Clone, Copy, Default)]
struct ImageState {
    seed: u64,
    /// Width and height of the image.
    size: (u32, u32),
    steps: u32,
    /// Images pushed so far.
    pushed: u32,
    whole: bool,
}

impl std::fmt::Debug for ImageOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageOutput").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

impl ImageOutput {
    pub(crate) fn new(outlet: Outlet) -> Self {
        Self { outlet, state: Arc::default() }
    }

    /// Says what is being made, in pixels, and from which seed. Before all else.
    pub fn begin(&self, width: u32, height: u32, seed: u64) {
        let mut state = self.lock();
        (state.size, state.seed) = ((width, height), seed);
    }

    /// Says that `done` of `total` steps have been made; the client's progress bar shows it.
    ///
    /// # Errors
    /// Once the client left: return it with `?`, it is a normal end.
    pub fn progress(&self, done: u32, total: u32) -> Result<()> {
        self.lock().steps = done;
        self.outlet.progress(done.into(), total.into())
    }

    /// Sends an unfinished image: rows top to bottom, 3 bytes (red, green, blue) for each pixel. Blocks while the
    /// client is too slow.
    ///
    /// # Errors
    /// Once the client left. Internal if the image is not of the size that [`begin`](Self::begin) named.
    pub fn preview(&self, pixels: &[u8]) -> Result<()> {
        self.push(pixels, true)
    }

    /// Sends the finished image, in the form of a [`preview`](Self::preview). Once, at the end.
    ///
    /// # Errors
    /// As [`preview`](Self::preview).
    pub fn image(&self, pixels: &[u8]) -> Result<()> {
        self.push(pixels, false)?;
        self.lock().whole = true;
        Ok(())
    }

    fn push(&self, pixels: &[u8], partial: bool) -> Result<()> {
        let ImageState { size: (width, height), steps, pushed, whole, .. } = *self.lock();
        let row = width as usize * ImageHeader::PIXEL_BYTES;
        if row == 0 || row.checked_mul(height as usize) != Some(pixels.len()) || whole {
            let text = format!("{} bytes are not the one image of {width} x {height}", pixels.len());
            return Err(Error::internal(text));
        }
        let rows = (BLOCK_BYTES / row).max(1);
        for (i, block) in pixels.chunks(rows * row).enumerate() {
            let header = ImageHeader::new(width, height).index(pushed).partial(partial).step(steps);
            let header = header.row((i * rows) as u32);
            self.outlet.push_paced(event_kind::BYTES, &ImageBlock::encode(&header, block)?)?;
        }
        self.lock().pushed += 1;
        Ok(())
    }

    pub(crate) fn finish(&self, result: Result<()>) -> Result<ImageFinish> {
        let ImageState { seed, size: (width, height), steps, whole, .. } = *self.lock();
        let reason = match result {
            Ok(()) if whole => FinishReason::Stop,
            Ok(()) => return Err(Error::internal("the engine ended without a finished image")),
            Err(error) => self.outlet.stopped(error).map(|()| FinishReason::Cancelled)?,
        };
        let (width, height) = if whole { (width, height) } else { (0, 0) };
        Ok(ImageFinish { reason, seed, steps, width, height })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ImageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
