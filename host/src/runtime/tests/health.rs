//! Models are asked how they are while nobody uses them, and replaced if they cannot serve.

use super::super::run::HEALTH_EVERY;
use super::fake::{Faults, Order};
use super::*;

const YAML: &str = "devices: [{id: cpu, memory: 150MiB}]\nmodels:\n  a: {type: text, plugin: fake}\n";

/// How often a model was loaded that was asked, left alone for so many rounds, and asked again.
async fn loads(faults: Faults, rounds: u32) -> u32 {
    let host = Host::start(World::new(faults, Order::ExitFirst, 150 << 20), 2, YAML);
    assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
    tokio::time::sleep(HEALTH_EVERY * rounds).await;
    assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
    assert_eq!(host.world.broken(), [""; 0]);
    host.world.loads()
}

#[tokio::test(start_paused = true)]
async fn one_that_is_well_stays() {
    assert_eq!(loads(Faults::Never, 100).await, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_serve_is_replaced_for_whoever_asks_next() {
    for way in ["health: it cannot serve", "health: it dies"] {
        assert_eq!(loads(Faults::First(way), 2).await, 2, "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_loaded_to_be_asked() {
    assert_eq!(loads(Faults::Always("health: it cannot serve"), 100).await, 2);
}
