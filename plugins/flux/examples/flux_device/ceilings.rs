//! What bounds a load: copies to the card from memory that is page-locked and that is not, locking pages, reading a file that
//! is in the page cache and one that is not.

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use serde_json::json;

use crate::card::{self, Staging};
use crate::{Here, Verdict, say, weights};

/// Times a copy is made; the best counts.
const TIMES: usize = 5;

pub(crate) fn run(here: &Here) {
    let bytes = if here.device.is_cpu() { 64 << 20 } else { 1 << 30 };
    let rate = |seconds: f64| json!(format!("{:.1} GB/s", bytes as f64 / seconds / 1e9));
    say("device", &card::describe(&here.device), Verdict::Figure);

    let start = Instant::now();
    let pinned = Staging::pinned(&here.device, bytes);
    say("memory page-locked and filled", &rate(start.elapsed().as_secs_f64()), Verdict::Figure);
    let pageable = Staging::pageable(&here.device, bytes);
    for (what, staging) in [("copy from page-locked memory", pinned), ("copy from pageable memory", pageable)] {
        let best = (0..TIMES).map(|_| timed(|| staging.copy(&here.device))).fold(f64::INFINITY, f64::min);
        say(what, &rate(best), Verdict::Figure);
    }

    let file = std::env::temp_dir().join(format!("flux-device-{}.bin", std::process::id()));
    weights::fill(&mut File::create(&file).unwrap(), bytes as u64).unwrap();
    // Written is not yet on the disk.
    File::open(&file).unwrap().sync_all().unwrap();
    let read = || {
        let mut buffer = vec![0; 8 << 20];
        let mut file = File::open(&file).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    };
    let cached = timed(read);
    say("reading a file from the page cache", &rate(timed(read).min(cached)), Verdict::Figure);
    let dropped = drop_cached(&file);
    let value =
        if dropped { rate(timed(read)) } else { json!("not measured: there is no `dd` to drop the page cache with") };
    say("reading the same from the disk", &value, Verdict::Figure);
    std::fs::remove_file(&file).unwrap();
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Asks the system to forget a file's pages.
fn drop_cached(file: &std::path::Path) -> bool {
    let input = format!("if={}", file.display());
    let dd =
        std::process::Command::new("dd").args([input.as_str(), "iflag=nocache", "count=0", "status=none"]).status();
    dd.is_ok_and(|status| status.success())
}
