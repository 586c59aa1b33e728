//! The image half of the SDK, through the same ABI objects the host uses.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod bare;

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{Context, Engine, ErrorKind, FinishReason, Image, ImageOutput, ImageRequest, Result};
use bare::loaded;

/// Paints every pixel in the step's number; the prompt says what it does wrong.
#[derive(Default)]
struct Painter;

impl Engine for Painter {
    type Task = Image;

    fn generate(&self, request: ImageRequest, output: &ImageOutput, _: &Context) -> Result<()> {
        let steps = request.steps.unwrap_or(4);
        let previews = request.preview_steps(steps);
        let size = (request.width * request.height * 3) as usize;
        output.begin(request.width, request.height, request.seed.unwrap_or(5));
        for step in 1..=steps {
            output.progress(step, steps)?;
            if previews.contains(&step) {
                output.preview(&vec![step as u8; size])?;
            }
        }
        match request.prompt.as_str() {
            "nothing" => Ok(()),
            "short" => output.image(&vec![0; size - 3]),
            "twice" => output.image(&vec![0; size]).and_then(|()| output.image(&vec![0; size])),
            _ => output.image(&vec![steps as u8; size]),
        }
    }
}

fn host() -> MockHost {
    loaded::<Painter>()
}

#[test]
fn previews_come_before_the_image_and_large_ones_in_blocks() {
    let host = host();
    let ask = ImageRequest::default().width(300).height(200).partial_images(2).steps(6);
    let answer = host.generate_image(&ask).unwrap();
    let seen: Vec<_> = answer.images.iter().map(|p| (p.header.index, p.header.partial, p.header.step)).collect();
    assert_eq!(seen, [(0, true, 2), (1, true, 4), (2, false, 6)]);
    for image in &answer.images {
        assert_eq!(image.pixels, vec![image.header.step as u8; 300 * 200 * 3]);
    }
    assert_eq!(host.progress(), 6);
    let finish = answer.finish;
    assert_eq!((finish.reason, finish.seed, finish.steps), (FinishReason::Stop, 5, 6));
    assert_eq!((finish.width, finish.height), (300, 200));
}

#[test]
fn a_client_that_leaves_is_a_normal_end_and_tells_the_seed() {
    let host = host();
    host.stop_after(2);
    let ask = ImageRequest::default().width(300).height(200).seed(9).partial_images(3);
    let answer = host.generate_image(&ask).unwrap();
    assert_eq!((answer.finish.reason, answer.finish.seed, answer.finish.steps), (FinishReason::Cancelled, 9, 1));
    assert_eq!((answer.finish.width, answer.images.len()), (0, 0));
    host.stop_after(usize::MAX);
    host.cancel();
    assert_eq!(host.generate_image(&ask).unwrap().finish.reason, FinishReason::Cancelled);
}

#[test]
fn an_engine_that_sends_no_whole_image_has_failed() {
    for prompt in ["nothing", "short", "twice"] {
        let ask = ImageRequest::new(prompt).width(8).height(8);
        assert_eq!(host().generate_image(&ask).unwrap_err().kind(), ErrorKind::Internal, "{prompt}");
    }
}
