//! The audio half of the SDK, through the same ABI objects the host uses.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod bare;

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{
    Audio, AudioFormat, AudioOutput, AudioRequest, Context, Engine, ErrorKind, FinishReason, Result,
};
use bare::loaded;

/// Plays what its prompt says: `RATE CHANNELS SAMPLE COUNT`, one after the other, or names a format by `RATE CHANNELS` alone.
#[derive(Default)]
struct Player;

impl Engine for Player {
    type Task = Audio;

    fn generate(&self, request: AudioRequest, output: &AudioOutput, _: &Context) -> Result<()> {
        for piece in request.prompt.split(';') {
            let words: Vec<&str> = piece.split_whitespace().collect();
            let [rate, channels, ref samples @ ..] = words[..] else { panic!("told {piece}") };
            output.format(AudioFormat::new(rate.parse().unwrap(), channels.parse().unwrap()));
            if let [sample, count] = samples {
                output.samples(&vec![sample.parse().unwrap(); count.parse().unwrap()])?;
            }
        }
        Ok(())
    }
}

#[test]
fn only_audio_that_can_be_played_leaves_the_plugin() {
    let host = loaded::<Player>();
    let play = |host: &MockHost, prompt: &str| host.generate_audio(&AudioRequest::new(prompt));
    for prompt in
        ["32000 1 0.5 40000", "48000 2 -1 2", "1000 1 0 0", "32000 1 0 4; 32000 1 1 4", "48000 2; 32000 1 0 4; 32000 1"]
    {
        let answer = play(&host, prompt).unwrap_or_else(|error| panic!("{prompt}: {error}"));
        assert_eq!(answer.finish.reason, FinishReason::Stop, "{prompt}");
    }
    for (prompt, wanted) in [
        ("32000 65535 0 65535", "65535 channels"),
        ("32000 0 0 4", "0 channels"),
        ("32000 3 0 3", "3 channels"),
        ("4294967295 1 0 4", "4294967295 Hz"),
        ("0 1 0 4", "0 Hz"),
        ("32000 2 0 3", "do not fill"),
        ("32000 1 NaN 4", "sample 0 is NaN"),
        ("32000 1 0 4; 32000 1 inf 1", "sample 4 is inf"),
        ("32000 1 0 4; 16000 1 0 4", "changed midway"),
        ("32000 1 0 4; 32000 2 0 4", "changed midway"),
        ("32000 1 0 4; 16000 1", "changed midway"),
        ("32000 65535", "65535 channels"),
        ("32000 65535 0 0", "65535 channels"),
        ("32000 0", "0 channels"),
        ("0 1", "0 Hz"),
        ("4294967295 1", "4294967295 Hz"),
    ] {
        let error = play(&host, prompt).err().unwrap_or_else(|| panic!("{prompt} was played"));
        assert_eq!(error.kind(), ErrorKind::Internal, "{prompt}: {error}");
        assert!(error.message().contains(wanted), "{prompt}: {error}");
    }
}

#[test]
fn no_answer_is_much_longer_than_asked() {
    let host = loaded::<Player>();
    let play = |prompt: &str| host.generate_audio(&AudioRequest::new(prompt).duration(1.0));
    // Engines work in frames and chunks: a second more is not too much.
    for prompt in ["1000 1 0 2000", "1000 2 0 4000", "1000 1 0 1000; 1000 1 0 1000"] {
        assert_eq!(play(prompt).unwrap().finish.seconds, 2.0, "{prompt}");
    }
    for prompt in ["1000 1 0 100000", "1000 1 0 2001", "1000 2 0 4002", "1000 1 0 1000; 1000 1 0 1000; 1000 1 0 1"] {
        let error = play(prompt).err().unwrap_or_else(|| panic!("{prompt} was played"));
        assert_eq!(error.kind(), ErrorKind::Internal, "{prompt}: {error}");
        assert!(error.message().contains("more than the 1 seconds"), "{prompt}: {error}");
    }
}
